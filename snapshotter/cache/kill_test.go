// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/snapshotter/cache"
)

// The environment of a test process that is to be killed.
const (
	killedRoot = "COFFER_TEST_CACHE_ROOT"
	killedFrom = "COFFER_TEST_CACHE_REGISTRIES"
)

// TestServesUntilKilled is the process that TestKilled starts and kills.
func TestServesUntilKilled(t *testing.T) {
	t.Parallel()
	root := os.Getenv(killedRoot)
	if root == "" {
		t.Skip("a part of TestKilled")
	}
	c, err := cache.Open(root, cache.Options{Registries: strings.Split(os.Getenv(killedFrom), ",")})
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("serves %s\n", l.Addr())
	server := &http.Server{Handler: c, ReadHeaderTimeout: time.Minute}
	t.Error(server.Serve(l))
}

// startKilled starts a process that serves the cache in root. kill is kill -9.
func startKilled(t *testing.T, root string, hosts ...string) (n *node, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestServesUntilKilled$")
	cmd.Env = append(os.Environ(), killedRoot+"="+root, killedFrom+"=http://"+strings.Join(hosts, ",http://"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = cmd.Process.Kill() // it may have been killed before
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if at, ok := strings.CutPrefix(lines.Text(), "serves "); ok {
			return &node{t: t, url: "http://" + at, root: root, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}, kill
		}
	}
	t.Fatal("the cache does not serve")
	return nil, nil
}

// A cache that is killed in the middle of a blob cuts its guests off, so that they
// ask the registry for the rest. The next one has what was whole, nothing of the
// rest, and lets go of the folder's lock by itself.
func TestKilled(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	p := push(t, r, 1<<20)
	g := newGated(t, 4<<20)
	root := t.TempDir()
	n, kill := startKilled(t, root, r.Host(), g.host)
	ask := func(n *node, host, path string) string { n.t.Helper(); return path + "?ns=" + host }
	whole := ask(n, r.Host(), blobPath("a/b", p.Layers[0].Digest))
	if got := n.ask(http.MethodGet, whole); got.err != nil || !bytes.Equal(got.body, p.Layers[0].Blob) {
		t.Fatalf("status %d, %v", got.status, got.err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.url+ask(n, g.host, blobPath("a/b", g.digest)), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := n.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	half := make([]byte, len(g.blob)/2-1)
	if _, err := io.ReadFull(resp.Body, half); err != nil || !bytes.Equal(half, g.blob[:len(half)]) {
		t.Fatalf("the first half: %v", err)
	}
	kill()
	if rest, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the guest takes the cut for the end, after %d bytes more", len(rest))
	}
	if left := n.files("partial/"); len(left) != 1 {
		t.Errorf("partial blobs after the kill: %v", left)
	}
	close(g.gate)
	again, _ := startKilled(t, root, r.Host(), g.host)
	if left := again.files("partial/"); len(left) != 0 {
		t.Errorf("partial blobs after the start: %v", left)
	}
	if got := again.ask(http.MethodGet, ask(again, g.host, blobPath("a/b", g.digest))); got.err != nil || !bytes.Equal(got.body, g.blob) {
		t.Errorf("status %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	if got := again.ask(http.MethodGet, whole); got.err != nil || !bytes.Equal(got.body, p.Layers[0].Blob) {
		t.Errorf("status %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	if asked := len(r.Requests(p.Layers[0].Digest.String())); asked != 1 {
		t.Errorf("the registry was asked %d times for what was whole", asked)
	}
}
