// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/registry"
)

// certificate is PEM of the one a TLS shelf shows.
func certificate(s *shelf) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw})
}

// clientPair makes a self-signed client certificate.
func clientPair(t *testing.T) (cert, key []byte, parsed *x509.Certificate) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "puller"}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), parsed
}

// TestClientCertificate loads a certs.d folder and shows the certificate to its
// registry only.
func TestClientCertificate(t *testing.T) {
	t.Parallel()
	cert, key, parsed := clientPair(t)
	s, other := unstarted(), unstarted()
	shown := make(chan int, 10)
	for _, shelf := range []*shelf{s, other} {
		shelf.server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	}
	s.server.TLS.ClientAuth, s.server.TLS.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	s.server.TLS.ClientCAs.AddCert(parsed)
	for _, shelf := range []*shelf{s, other} {
		shelf.server.StartTLS()
		t.Cleanup(shelf.server.Close)
	}
	p := s.image(t, "a/b", "v1", "x", ocispec.Platform{})
	other.put("moved", "", p.content, nil)
	other.setGuard(func(_ http.ResponseWriter, r *http.Request) bool { shown <- len(r.TLS.PeerCertificates); return true })

	dir := t.TempDir()
	for name, content := range map[string][]byte{
		s.host() + "/ca.crt": certificate(s), s.host() + "/client.cert": cert, s.host() + "/client.key": key,
		s.host() + "/README": nil, "empty/README": nil, "file": nil,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hosts, err := registry.LoadCertsDir(dir)
	if err != nil || len(hosts) != 1 {
		t.Fatalf("%d hosts, %v", len(hosts), err)
	}
	c := client(t, registry.Options{TLS: hosts, CAs: certificate(other)})
	image, _, err := pull(t, c, s.host()+"/a/b:v1")
	if err != nil {
		t.Fatal(err)
	}
	s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, other.server.URL+"/v2/moved", http.StatusTemporaryRedirect)
		return false
	})
	if content, err := fetch(t, c, image); err != nil || !bytes.Equal(content, p.content) || <-shown != 0 {
		t.Errorf("redirect: %d bytes, %v", len(content), err)
	}
	_, _, err = pull(t, client(t, registry.Options{CAs: certificate(s)}), s.host()+"/a/b:v1")
	if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "certs_dir") {
		t.Errorf("without: %v", err)
	}

	if err := os.Remove(filepath.Join(dir, s.host(), "client.cert")); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.LoadCertsDir(dir); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "client.key") {
		t.Errorf("a key alone: %v", err)
	}
	for name, host := range map[string]registry.HostTLS{
		"no CA":       {CAs: []byte("x")},
		"another key": {Certificates: []registry.ClientCertificate{{Certificate: cert, Key: cert}}},
	} {
		if _, err := registry.NewClient(registry.Options{TLS: map[string]registry.HostTLS{"h.example": host}}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "h.example") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestInsecureEndpoint asks what the registries configuration calls insecure:
// over HTTPS whatever the certificate, then over HTTP.
func TestInsecureEndpoint(t *testing.T) {
	t.Parallel()
	for name, secure := range map[string]bool{"untrusted certificate": true, "plain HTTP": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, other := unstarted(), unstarted()
			other.server.StartTLS()
			t.Cleanup(other.server.Close)
			if secure {
				s.server.StartTLS()
			} else {
				s.server.Start()
			}
			t.Cleanup(s.server.Close)
			p := s.image(t, "a/b", "v1", "x", ocispec.Platform{})
			c := client(t, registry.Options{Config: parseConf(t, "[[registry]]\nlocation = %q\ninsecure = true\n", s.host())})
			image, content, err := pull(t, c, s.host()+"/a/b:v1")
			if err != nil || !bytes.Equal(content, p.content) {
				t.Fatalf("%d bytes, %v", len(content), err)
			}
			// Not another host that it sends to.
			s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, other.server.URL, http.StatusTemporaryRedirect)
				return false
			})
			if _, err = fetch(t, c, image); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "unknown authority") {
				t.Errorf("redirect to a host that is not insecure: %v", err)
			}
			s.setGuard(nil)
			_, _, err = pull(t, client(t, registry.Options{}), s.host()+"/a/b:v1")
			if !errdefs.IsUnavailable(err) {
				t.Errorf("not called insecure: %v", err)
			}
		})
	}
}

// connectProxy is a proxy that leads every name to one address.
type connectProxy struct {
	to string

	mu    sync.Mutex
	asked []string
	wg    sync.WaitGroup
}

func (p *connectProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, r.Method+" "+r.Host)
	p.mu.Unlock()
	if r.Header.Get("Proxy-Authorization") != "Basic dTpw" {
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	up, err := net.Dial("tcp", p.to)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer up.Close()
	if r.Method != http.MethodConnect {
		_ = r.Write(up)
		down, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer down.Close()
		_ = buffered
		_, _ = io.Copy(down, up)
		return
	}
	down, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer down.Close()
	_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
	p.wg.Go(func() { _, _ = io.Copy(up, down); _ = up.(*net.TCPConn).CloseWrite() })
	_, _ = io.Copy(down, up)
}

// TestProxy pulls through a proxy: by CONNECT, with a password.
func TestProxy(t *testing.T) {
	t.Parallel()
	s := unstarted()
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	p := s.image(t, "a/b", "v1", "x", ocispec.Platform{})
	handler := &connectProxy{to: s.host()}
	proxy := httptest.NewServer(handler)
	t.Cleanup(func() { proxy.CloseClientConnections(); proxy.Close(); handler.wg.Wait() })
	host := strings.TrimPrefix(proxy.URL, "http://")

	// example.com is in the certificate of httptest.
	opts := registry.Options{CAs: certificate(s), Proxy: registry.Proxy{HTTPS: "http://u:p@" + host, NoProxy: "direct.invalid,.example.org"}}
	c := client(t, opts)
	_, content, err := pull(t, c, "example.com/a/b:v1")
	if err != nil || !bytes.Equal(content, p.content) {
		t.Errorf("%d bytes, %v", len(content), err)
	}
	if handler.mu.Lock(); len(handler.asked) == 0 || handler.asked[0] != "CONNECT example.com:443" {
		t.Errorf("asked: %q", handler.asked)
	}
	before := len(handler.asked)
	handler.mu.Unlock()
	if _, _, err = pull(t, c, "direct.invalid/a/b:v1"); err == nil {
		t.Error("an invalid name was found")
	}
	if handler.mu.Lock(); len(handler.asked) != before {
		t.Errorf("no_proxy was asked through the proxy: %q", handler.asked)
	}
	handler.mu.Unlock()
	// What stands beside registries is asked the same way.
	resp, err := c.HTTP().Get("https://example.com/v2/")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	c.Close()

	opts.Proxy.HTTPS = "http://u:wrong@" + host
	_, _, err = pull(t, client(t, opts), "example.com/a/b:v1")
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "proxy "+host+" answered 407") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("wrong password: %v", err)
	}
	for _, bad := range []string{"u:secret@h:1", "socks5://h:1", "http://", "http://u:secret@h:x%zz"} {
		if _, err := registry.NewClient(registry.Options{Proxy: registry.Proxy{HTTP: bad}}); !errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestProxyFromEnvironment reads the environment, which it changes and so runs
// alone, only when it is asked to.
func TestProxyFromEnvironment(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("NO_PROXY", "")
	t.Setenv("https_proxy", "")
	t.Setenv("no_proxy", "")
	c := client(t, registry.Options{Proxy: registry.Proxy{FromEnvironment: true}})
	if _, _, err := pull(t, c, "registry.invalid/a/b"); err == nil || !strings.Contains(err.Error(), "proxyconnect") {
		t.Errorf("from the environment: %v", err)
	}
	c = client(t, registry.Options{})
	if _, _, err := pull(t, c, "registry.invalid/a/b"); err == nil || strings.Contains(err.Error(), "proxyconnect") {
		t.Errorf("not from it: %v", err)
	}
}

// TestStalls never lets a request hang, whatever the stage.
func TestStalls(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s := newShelf(t)
	ts := guardWithTokens(t, s)
	ts.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"token":`)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	opts := registry.Options{StallTimeout: 100 * time.Millisecond}
	for name, c := range map[string]struct {
		client *registry.Client
		host   string
	}{
		"TLS handshake": {client(t, opts), silent.Addr().String()},
		"header":        {client(t, registry.Options{StallTimeout: opts.StallTimeout, Insecure: []string{silent.Addr().String()}}), silent.Addr().String()},
		"token":         {client(t, opts, s), s.host()},
	} {
		start := time.Now()
		_, _, err := pull(t, c.client, c.host+"/a/b:v1")
		if !errdefs.IsUnavailable(err) || time.Since(start) > 10*time.Second {
			t.Errorf("%s: %v after %s", name, err, time.Since(start))
		}
	}
}
