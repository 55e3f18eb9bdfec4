// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package login

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
)

const (
	programPrefix  = "docker-credential-"
	programTimeout = 30 * time.Second
	programOutput  = 64 << 10
	// tokenUser is the user name by which a program says that the secret is
	// an identity token.
	tokenUser = "<token>"
	// hubServer is the name under which programs keep Docker Hub's login.
	hubServer = "https://index.docker.io/v1/"
)

// checkProgram accepts what is the end of a program's name and no path.
func checkProgram(name string) error {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == '\\' || r <= ' ' || r == 0x7f }) {
		return fmt.Errorf("%.80q is not the end of the name of a docker-credential program: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// run asks a docker-credential program for the login of a host. That it has none
// is no error.
func (c *Config) run(ctx context.Context, name, host string) (Credential, error) {
	running, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	server := host
	if host == dockerHub {
		server = hubServer
	}
	path := programPrefix + name
	if c.opts.Directory != "" {
		path = filepath.Join(c.opts.Directory, path)
	}
	found, err := client.Get(func(args ...string) client.Program {
		cmd := exec.CommandContext(running, path, args...)
		// What the program has started must not keep its output open.
		cmd.WaitDelay = time.Second
		return &program{cmd: cmd, kill: cancel}
	}, server)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return Credential{}, nil
	case ctx.Err() != nil:
		return Credential{}, fmt.Errorf("registry credentials: %s%s for %s: %w", programPrefix, name, host, context.Cause(ctx))
	case err != nil:
		// Its text is left out: a program may well print what it was to keep.
		return Credential{}, fmt.Errorf("registry credentials: %s%s gave none for %s: run it as the daemon's user to see why: %w", programPrefix, name, host, errdefs.ErrUnavailable)
	case found.Username == tokenUser:
		return Credential{IdentityToken: found.Secret}, nil
	}
	return Credential{Username: found.Username, Password: found.Secret}, nil
}

// program is a started-once process with bounded output.
type program struct {
	cmd  *exec.Cmd
	kill func()
}

// Input sets what the program reads.
func (p *program) Input(in io.Reader) { p.cmd.Stdin = in }

// Output runs the program.
func (p *program) Output() ([]byte, error) {
	out := &limited{left: programOutput, full: p.kill}
	p.cmd.Stdout = out
	err := p.cmd.Run()
	return out.kept.Bytes(), err
}

// limited keeps the first bytes of what is written; more is refused, and full
// is called.
type limited struct {
	kept bytes.Buffer // not embedded: its ReadFrom knows no limit
	left int
	full func()
}

func (l *limited) Write(b []byte) (int, error) {
	if l.left -= len(b); l.left < 0 {
		l.full()
		return 0, io.ErrShortWrite
	}
	return l.kept.Write(b)
}
