// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// HostTLS is what TLS with one registry needs beyond the common settings.
type HostTLS struct {
	// CAs is PEM of authorities trusted for this host, beside the common ones.
	CAs []byte
	// Certificates are shown to a host that asks for one.
	Certificates []ClientCertificate
}

// ClientCertificate is a certificate, with its chain, and its key; both PEM.
type ClientCertificate struct {
	Certificate, Key []byte
}

func (t HostTLS) config(base *tls.Config) (*tls.Config, error) {
	config := base.Clone()
	if len(t.CAs) > 0 {
		config.RootCAs = base.RootCAs.Clone()
		if !config.RootCAs.AppendCertsFromPEM(t.CAs) {
			return nil, errors.New("no PEM certificate of an authority")
		}
	}
	for _, c := range t.Certificates {
		pair, err := tls.X509KeyPair(c.Certificate, c.Key)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		config.Certificates = append(config.Certificates, pair)
	}
	return config, nil
}

// LoadCertsDir reads a folder in the form of /etc/docker/certs.d: in a folder
// for each registry, host or host:port, *.crt are authorities, and each *.cert
// is a client certificate whose key is the *.key of the same name. Other files
// are passed over; folders may be empty. Errors name the file.
func LoadCertsDir(dir string) (map[string]HostTLS, error) {
	hosts, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("registry certs_dir: %w", err)
	}
	all := make(map[string]HostTLS)
	for _, host := range hosts {
		path := filepath.Join(dir, host.Name())
		if info, err := os.Stat(path); err != nil || !info.IsDir() { // a link to a folder is one
			continue
		}
		t, err := loadHost(path)
		if err != nil {
			return nil, fmt.Errorf("registry certs_dir: %w", err)
		}
		if len(t.CAs) > 0 || len(t.Certificates) > 0 {
			all[host.Name()] = t
		}
	}
	return all, nil
}

func loadHost(dir string) (HostTLS, error) {
	var t HostTLS
	files, err := os.ReadDir(dir)
	if err != nil {
		return t, err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		switch filepath.Ext(f.Name()) {
		case ".crt":
			pem, err := os.ReadFile(path)
			if err != nil {
				return t, err
			}
			t.CAs = append(append(t.CAs, pem...), '\n')
		case ".cert":
			var c ClientCertificate
			if c.Certificate, err = os.ReadFile(path); err != nil {
				return t, err
			}
			key := strings.TrimSuffix(path, ".cert") + ".key"
			if c.Key, err = os.ReadFile(key); err != nil {
				return t, fmt.Errorf("key of %s: %w", path, err)
			}
			t.Certificates = append(t.Certificates, c)
		case ".key":
			if _, err := os.Stat(strings.TrimSuffix(path, ".key") + ".cert"); err != nil {
				return t, fmt.Errorf("%s: a key without its .cert beside it (authorities are .crt): %w", path, errdefs.ErrInvalidArgument)
			}
		}
	}
	return t, nil
}
