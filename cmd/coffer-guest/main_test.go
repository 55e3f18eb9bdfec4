// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/testscript"

	aaapi "github.com/coffer-cc/coffer/attester/api"
	cdhapi "github.com/coffer-cc/coffer/cdh/api"
	pullapi "github.com/coffer-cc/coffer/imagepull/api"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"coffer-guest": main})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	golden, err := filepath.Abs("default.toml")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			registry := httptest.NewServer(http.NotFoundHandler())
			env.Defer(registry.Close)
			env.Setenv("DEFAULT", golden)
			env.Setenv("REGISTRY", registry.Listener.Addr().String())
			env.Values[processKey{}] = new(process)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"envsubst": envsubst,
			"guest":    guestCommand,
		},
	})
}

// envsubst puts environment variables into a file.
func envsubst(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	ts.Check(os.WriteFile(path, []byte(os.Expand(string(b), ts.Getenv)), 0o600))
}

type processKey struct{}

// process is the guest that a script has started.
type process struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
}

func guestCommand(ts *testscript.TestScript, _ bool, args []string) {
	p, _ := ts.Value(processKey{}).(*process)
	switch {
	case len(args) == 2 && args[0] == "start":
		p.start(ts, args[1])
	case len(args) == 2 && args[0] == "stop":
		p.stop(ts, args[1])
	case len(args) == 2:
		ask(ts, args[0], args[1])
	default:
		ts.Fatalf("usage: guest start|stop|tee|layer|resource|token ARGUMENT")
	}
}

// start returns when the guest says that it is ready.
func (p *process) start(ts *testscript.TestScript, config string) {
	socket := ts.MkAbs("notify.sock")
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	ts.Check(err)
	defer func() { _ = errors.Join(ready.Close(), os.Remove(socket)) }()
	binary, err := exec.LookPath("coffer-guest")
	ts.Check(err)
	p.cmd = exec.Command(binary, "-c", ts.MkAbs(config))
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	p.stderr.Reset()
	p.cmd.Stderr = &p.stderr
	began := time.Now()
	ts.Check(p.cmd.Start())
	ts.Defer(func() { _ = p.cmd.Process.Kill() })
	ts.Check(ready.SetReadDeadline(time.Now().Add(20 * time.Second)))
	buf := make([]byte, 64)
	n, err := ready.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		ts.Fatalf("notification %q, %v; stderr: %s", buf[:n], err, p.stderr.String())
	}
	ts.Logf("ready after %v", time.Since(began).Round(time.Millisecond))
	logMemory(ts, p.cmd.Process.Pid)
}

func logMemory(ts *testscript.TestScript, pid int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	ts.Check(err)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") {
			ts.Logf("%s", strings.TrimSpace(line))
		}
	}
}

func (p *process) stop(ts *testscript.TestScript, name string) {
	sig := map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT, "SIGKILL": syscall.SIGKILL}[name]
	ts.Check(p.cmd.Process.Signal(sig))
	err := p.cmd.Wait()
	ts.Logf("[stderr]\n%s", p.stderr.String())
	if sig == syscall.SIGKILL {
		return
	}
	ts.Check(err)
	for line := range strings.Lines(p.stderr.String()) {
		if !strings.HasPrefix(line, "{") {
			ts.Fatalf("stderr has a line that is not JSON: %s", line)
		}
	}
}

// ask makes one request of a kind and compares what comes back, or its error.
func ask(ts *testscript.TestScript, kind, want string) {
	socket := map[string]string{"tee": "aa", "token": "aa", "resource": "cdh", "layer": "guest"}[kind]
	conn, err := net.Dial("unix", filepath.Join(ts.Getenv("WORK"), "run", socket+".sock"))
	ts.Check(err)
	client := ttrpc.NewClient(conn)
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var got string
	switch kind {
	case "tee":
		r, err := aaapi.NewAttestationAgentServiceClient(client).GetTeeType(ctx, &aaapi.GetTeeTypeRequest{})
		got = fmt.Sprint(r.GetTee(), err)
	case "token":
		_, err = aaapi.NewAttestationAgentServiceClient(client).GetToken(ctx, &aaapi.GetTokenRequest{TokenType: "kbs"})
		got = fmt.Sprint(err)
	case "resource":
		_, err = cdhapi.NewGetResourceServiceClient(client).GetResource(ctx, &cdhapi.GetResourceRequest{ResourcePath: "kbs:///a/b/c"})
		got = fmt.Sprint(err)
	case "layer":
		d := digest.FromString("x").String()
		_, err = pullapi.NewLayerPullerClient(client).PullLayer(ctx, &pullapi.PullLayerRequest{
			Image: ts.Getenv("REGISTRY") + "/app:1", ManifestDigest: d, ChainId: d,
		})
		got = fmt.Sprint(err)
	}
	ts.Logf("%s: %s", kind, got)
	if !strings.Contains(strings.ToLower(got), strings.ToLower(want)) {
		ts.Fatalf("answer %q, want %q", got, want)
	}
}
