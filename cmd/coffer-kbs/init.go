// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coffer-cc/coffer/kbs/server"
	"github.com/coffer-cc/coffer/kbs/verifier/sample"
)

// Names of the files that init writes into its folder.
const (
	configName    = "coffer-kbs.toml"
	adminKeyName  = "admin.key"
	adminPubName  = "admin.pub"
	tokenName     = "admin.token"
	databaseName  = "kbs.db"
	refValuesName = "reference-values.json"
	caName        = "ca.pem"
	certName      = "server.pem"
	certKeyName   = "server.key"
)

type initOptions struct {
	dir, listen string
	sample, tls bool
	names       []string
	ttl         time.Duration
}

// file is one file to be written.
type file struct {
	name string
	mode fs.FileMode
	data []byte
}

// initialize writes a folder from which the service can be started. It
// replaces no file: if one is there, nothing is written.
func initialize(o initOptions, now time.Time, stdout io.Writer) error {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return err
	}
	files, err := o.files(dir, now)
	if err != nil {
		return err
	}
	for _, f := range files {
		switch _, err := os.Lstat(filepath.Join(dir, f.name)); {
		case err == nil:
			return fmt.Errorf("%s is there already; choose another --dir, or remove it first", filepath.Join(dir, f.name))
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for i, f := range files {
		if err := writeNew(filepath.Join(dir, f.name), f.mode, f.data); err != nil {
			for _, written := range files[:i] {
				err = errors.Join(err, os.Remove(filepath.Join(dir, written.name)))
			}
			return err
		}
	}
	return printTo(stdout, "%s", o.advice(dir))
}

// advice says how to go on.
func (o initOptions) advice(dir string) string {
	environment := fmt.Sprintf("COFFER_KBS=%s COFFER_ADMIN_TOKEN_FILE=%s", o.url(), filepath.Join(dir, tokenName))
	if o.tls {
		environment += " COFFER_KBS_CA=" + filepath.Join(dir, caName)
	}
	text := fmt.Sprintf("wrote %s\n\nstart:      coffer-kbs serve -c %s\nadminister: export %s\n            (the token is good for %s; then: coffer-kbs admin token --dir %s)\n",
		dir, filepath.Join(dir, configName), environment, o.ttl, dir)
	if o.sample {
		text += "\nWARNING: sample evidence is accepted. Anybody can make it up: keep no real secret in this service.\n"
	}
	return text
}

// url is where the service can be reached from this machine.
func (o initOptions) url() string {
	scheme := "http"
	if o.tls {
		scheme = "https"
	}
	host, port, _ := net.SplitHostPort(o.listen) // files checked it
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

func (o initOptions) files(dir string, now time.Time) ([]file, error) {
	if len(o.names) > 0 && !o.tls {
		return nil, errors.New("--tls-name is for the certificate that --tls makes; add --tls")
	}
	c := Default()
	c.Server.Address = o.listen
	c.Server.InsecureHTTP = !o.tls
	if o.tls { // any name will do for the check
		c.Server.Certificate, c.Server.PrivateKey = certName, certKeyName
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	token, err := server.IssueAdminToken(private, now, o.ttl)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	pkix, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	files := []file{
		{configName, 0o600, []byte(o.config(dir))},
		{adminKeyName, 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})},
		{adminPubName, 0o644, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix})},
		{tokenName, 0o600, []byte(token + "\n")},
	}
	if o.sample {
		b, err := json.MarshalIndent(sample.ReferenceValues(), "", "  ")
		if err != nil {
			return nil, err
		}
		files = append(files, file{refValuesName, 0o644, append(b, '\n')})
	}
	if o.tls {
		more, err := certificates(o.listen, o.names, now)
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	return files, nil
}

// config is the default configuration with the values of this folder.
func (o initOptions) config(dir string) string {
	set := func(text, old, value string) string { return strings.Replace(text, old, value, 1) }
	path := func(key, name string) string { return fmt.Sprintf("%s = %q", key, filepath.Join(dir, name)) }
	text := set(defaultConfig, `address = "127.0.0.1:8080"`, fmt.Sprintf("address = %q", o.listen))
	text = set(text, `public_key_file = ""`, path("public_key_file", adminPubName))
	text = set(text, `path = "/var/lib/coffer/kbs/kbs.db"`, path("path", databaseName))
	if o.sample {
		text = set(text, "sample = false", "sample = true")
		text = set(text, `reference_values = ""`, path("reference_values", refValuesName))
	}
	if o.tls {
		text = set(text, `certificate = ""`, path("certificate", certName))
		return set(text, `private_key = ""`, path("private_key", certKeyName))
	}
	return set(text, "insecure_http = false", "insecure_http = true")
}

// renewToken replaces the token that init wrote.
func renewToken(dir string, ttl time.Duration, now time.Time, stdout io.Writer) error {
	keyPath := filepath.Join(dir, adminKeyName)
	b, err := os.ReadFile(keyPath)
	if err != nil {
		return fmt.Errorf("%w; was this folder made by coffer-kbs init?", err)
	}
	defer clear(b)
	block, _ := pem.Decode(b)
	if block == nil {
		return fmt.Errorf("%s: not PEM", keyPath)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s: not a PKCS #8 key", keyPath)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return fmt.Errorf("%s: not an Ed25519 key", keyPath)
	}
	token, err := server.IssueAdminToken(key, now, ttl)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, tokenName)
	if err := replace(path, []byte(token+"\n")); err != nil {
		return err
	}
	return printTo(stdout, "wrote %s, good until %s\n", path, now.Add(ttl).Format(time.RFC3339))
}

// writeNew writes a file that must not be there yet.
func writeNew(path string, mode fs.FileMode, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// replace writes a file of mode 0600 beside path and moves it there.
func replace(path string, data []byte) error {
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeNew(temporary, 0o600, data); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
