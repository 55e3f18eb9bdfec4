// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	// maxSkew is what the clocks of this machine and of the broker may differ by:
	// tokens are made for a few minutes.
	maxSkew = time.Minute
	// soon is when a certificate should be renewed.
	soon = 14 * 24 * time.Hour
)

// checkKBS asks the key broker as the guest does, up to where attestation would
// begin, and compares the clocks.
func checkKBS(ctx context.Context, n *node) []Finding {
	base := cmp.Or(n.opts.KBS, n.guest.KBS.URL)
	if base == "" {
		if n.snapshotter.guestRoute() {
			return []Finding{{Level: OK, Text: "the guests know the key broker; to check it from here name it with --kbs"}}
		}
		return []Finding{{Level: Warning, Text: "no key broker is configured: encrypted images are refused", Fix: lines("in "+n.guestConfig()+":", "[kbs]", `  url = "https://…"`, "systemctl restart coffer-guest")}}
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return []Finding{{Level: Problem, Text: fmt.Sprintf("kbs.url %q is not http(s)://host[:port]", base), Fix: lines("in "+n.guestConfig()+":", "[kbs]", `  url = "https://…"`)}}
	}
	transport, problem := n.transport()
	if problem != nil {
		return []Finding{*problem}
	}
	resp, err := get(ctx, transport, strings.TrimSuffix(base, "/")+"/kbs/v0/auth")
	if err != nil {
		return []Finding{n.kbsUnreachable(base, err)}
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	if resp.StatusCode >= http.StatusInternalServerError {
		return []Finding{{Level: Problem, Text: fmt.Sprintf("the key broker %s answers %s", base, resp.Status), Fix: "see the key broker's log"}}
	}
	found := []Finding{{Level: OK, Text: "the key broker " + base + " answers"}}
	if u.Scheme == "http" {
		found = append(found, Finding{Level: Warning, Text: "it is asked without TLS: the host sees which keys are asked for", Fix: lines("in "+n.guestConfig()+":", "[kbs]", `  url = "https://`+u.Host+`"`)})
	}
	now := n.opts.Now()
	if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
		if end := resp.TLS.PeerCertificates[0].NotAfter; end.Sub(now) < soon {
			found = append(found, Finding{Level: Warning, Text: "its certificate ends on " + end.Format(time.DateOnly), Fix: "renew the certificate of " + base})
		}
	}
	return append(found, checkClock(resp.Header.Get("Date"), now)...)
}

// transport trusts what the guest trusts.
func (n *node) transport() (http.RoundTripper, *Finding) {
	if n.opts.Transport != nil {
		return n.opts.Transport, nil
	}
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	if file := n.guest.KBS.CAFile; file != "" {
		pem, err := os.ReadFile(file)
		roots, rerr := x509.SystemCertPool()
		if rerr != nil {
			roots = x509.NewCertPool()
		}
		if err == nil && !roots.AppendCertsFromPEM(pem) {
			err = errors.New("no PEM certificate in it")
		}
		if err != nil {
			return nil, &Finding{Level: Problem, Text: fmt.Sprintf("kbs.ca_file %s: %v", file, err), Fix: lines("in "+n.guestConfig()+":", "[kbs]", `  ca_file = "…"`)}
		}
		t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	return t, nil
}

func get(ctx context.Context, t http.RoundTripper, address string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)) // only the header is of interest
	return resp, resp.Body.Close()
}

func (n *node) kbsUnreachable(base string, err error) Finding {
	f := Finding{Level: Problem, Text: fmt.Sprintf("the key broker %s: %v", base, err), Fix: "check name, port, routes and firewall: curl -v " + base + "/kbs/v0/auth"}
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var dns *net.DNSError
	switch {
	case errors.As(err, &unknown):
		f.Fix = lines("in "+n.guestConfig()+", the certificate of the authority that signed it:", "[kbs]", `  ca_file = "…"`)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		f.Fix = "renew the certificate of the key broker, or set this machine's clock (timedatectl)"
	case errors.As(err, &host):
		f.Fix = lines("in "+n.guestConfig()+", a name that the certificate has:", "[kbs]", `  url = "https://…"`)
	case errors.As(err, &dns):
		f.Fix = "the name " + dns.Name + " is not known here: see /etc/resolv.conf, or kbs.url in " + n.guestConfig()
	}
	return f
}

func checkClock(date string, now time.Time) []Finding {
	theirs, err := http.ParseTime(date)
	if err != nil {
		return nil
	}
	if skew := now.Sub(theirs); skew.Abs() > maxSkew {
		return []Finding{{
			Level: Problem, Text: fmt.Sprintf("this machine's clock and the key broker's differ by %s: tokens are not valid yet or any more", skew.Round(time.Second)),
			Fix: "timedatectl set-ntp true, here or there",
		}}
	}
	return []Finding{{Level: OK, Text: "the clock agrees with the key broker's"}}
}
