// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Command containerd-shim-standin-v2 stands in for Kata's shim and for the guest
// behind it, where there can be no virtual machine. To containerd it is the runtime
// io.containerd.standin.v2. Like Kata, it mounts no image that a volume says the
// guest pulls: it asks the confidential data hub for the image, and the container
// runs from the bundle that this made. The rest of the work is runc's shim's, which
// it starts and speaks to.
//
// The rules by which it reads mounts and annotations are Kata's, written down here
// a second time: it shares no code with the snapshotter.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"google.golang.org/protobuf/proto"
)

// config says where things are. The program finds it by STANDIN_CONFIG, since
// containerd hands its own environment down to shims.
type config struct {
	Shim     string // runc's shim
	Runc     string
	RuncRoot string
	CDH      string // socket of the confidential data hub
	Guest    string // folder that is the guest's /run/kata-containers
	Busybox  string // static busybox of the guest, for its pause container
	Force    bool   // experimental_force_guest_pull
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "standin:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 3 && args[0] == "serve" {
		return serve(context.Background(), args[1], args[2])
	}
	c, err := readConfig()
	if err != nil {
		return err
	}
	if len(args) == 0 || args[len(args)-1] != "start" {
		return c.pass(args, os.Stdin, os.Stdout)
	}
	var answer bytes.Buffer
	if err := c.pass(args, os.Stdin, &answer); err != nil {
		return err
	}
	var result bootapi.BootstrapResult
	if err := proto.Unmarshal(answer.Bytes(), &result); err != nil {
		return fmt.Errorf("answer of %s: %w", c.Shim, err)
	}
	if result.Address, err = c.front(result.Address); err != nil {
		return err
	}
	b, err := proto.Marshal(&result)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(b)
	return err
}

func readConfig() (config, error) {
	var c config
	b, err := os.ReadFile(os.Getenv("STANDIN_CONFIG"))
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return c, fmt.Errorf("STANDIN_CONFIG: %w", err)
	}
	return c, nil
}

// pass runs runc's shim in this one's place.
func (c config) pass(args []string, in io.Reader, out io.Writer) error {
	cmd := exec.Command(c.Shim, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
	return cmd.Run()
}

// front returns the address of the process that stands before the shim at
// address, which it starts for the first container of a pod.
func (c config) front(address string) (string, error) {
	sum := sha256.Sum256([]byte(address))
	socket := filepath.Join(filepath.Dir(strings.TrimPrefix(address, "unix://")), "f"+hex.EncodeToString(sum[:8]))
	listener, err := net.Listen("unix", socket)
	if errors.Is(err, syscall.EADDRINUSE) {
		return "unix://" + socket, nil
	}
	if err != nil {
		return "", err
	}
	unixListener := listener.(*net.UnixListener) //nolint:forcetypeassert // of the network that was asked for
	unixListener.SetUnlinkOnClose(false)
	file, err := unixListener.File()
	if err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	log, err := os.OpenFile(filepath.Join(c.Guest, "standin.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(self, "serve", address, socket)
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = errors.Join(cmd.Start(), file.Close(), listener.Close(), log.Close())
	return "unix://" + socket, err
}

// removeSocket ends the life of a socket.
func removeSocket(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
