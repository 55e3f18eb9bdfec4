// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"sync"
	"time"
)

// certificateLifetime is how long a made certificate is good for.
const certificateLifetime = 366 * 24 * time.Hour

// certificates makes a CA and a server's certificate. The CA's key is thrown
// away, so that it can vouch for nothing else.
func certificates(listen string, names []string, now time.Time) ([]file, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "coffer-kbs CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "coffer-kbs"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	nameLeaf(leaf, listen, names)
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	return []file{
		{caName, 0o644, block("CERTIFICATE", caDER)},
		{certName, 0o644, block("CERTIFICATE", leafDER)},
		{certKeyName, 0o600, block("PRIVATE KEY", keyDER)},
	}, nil
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

// nameLeaf gives a certificate the names under which the service may be
// reached: those asked for, the address it listens on and this machine's.
func nameLeaf(leaf *x509.Certificate, listen string, names []string) {
	all := append([]string{"localhost", "127.0.0.1", "::1"}, names...)
	if host, _, err := net.SplitHostPort(listen); err == nil {
		all = append(all, host)
	}
	if host, err := os.Hostname(); err == nil {
		all = append(all, host)
	}
	seen := map[string]bool{"": true}
	for _, name := range all {
		if seen[name] {
			continue
		}
		seen[name] = true
		if ip := net.ParseIP(name); ip == nil {
			leaf.DNSNames = append(leaf.DNSNames, name)
		} else if !ip.IsUnspecified() {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		}
	}
}

// keyPair is a certificate that is read again when its file changes. While
// the new one cannot be read, the old one stays.
type keyPair struct {
	certificate, privateKey string

	mu     sync.Mutex
	loaded *tls.Certificate
	at     time.Time
}

func loadKeyPair(certificate, privateKey string) (*keyPair, error) {
	k := &keyPair{certificate: certificate, privateKey: privateKey}
	_, err := k.get(nil)
	return k, err
}

// get implements tls.Config.GetCertificate.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	info, err := os.Stat(k.certificate)
	if err == nil && k.loaded != nil && info.ModTime().Equal(k.at) {
		return k.loaded, nil
	}
	fresh, loadErr := tls.LoadX509KeyPair(k.certificate, k.privateKey)
	if err == nil && loadErr == nil {
		k.loaded, k.at = &fresh, info.ModTime()
		return k.loaded, nil
	}
	if k.loaded != nil {
		return k.loaded, nil
	}
	if err == nil {
		err = loadErr
	}
	return nil, err
}
