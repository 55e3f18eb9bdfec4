// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = time.Minute
	stopTimeout  = 10 * time.Second
	pollInterval = 5 * time.Millisecond // only where a program has no event to wait for
)

// Component is one program of a testbed. Its methods may be called from
// several goroutines.
type Component struct {
	// Name is the program's name, and that of its log file.
	Name string
	// Log is the file that has the program's output of all its starts.
	Log string

	box    *sandbox
	path   string
	args   []string
	env    []string
	notify string                          // socket for READY=1; "" = probe tells
	probe  func(ctx context.Context) error // nil answer = ready
	ours   bool                            // has to end with success when asked to stop

	mu      sync.Mutex // guards the two below
	cmd     *exec.Cmd
	stopped chan struct{} // closed when cmd has been waited for
}

// Start starts the program and returns when it is ready. Starting a running
// component is an error.
func (c *Component) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ready, done, err := c.listenReady(ctx)
	if err != nil {
		return err
	}
	defer done()
	stopped, err := c.launch()
	if err != nil {
		return err
	}
	select {
	case err = <-ready:
		if err == nil {
			return nil
		}
	case <-stopped:
		return fmt.Errorf("%s ended at once%s", c.Name, c.tail())
	case <-ctx.Done():
		err = ctx.Err()
	}
	return fmt.Errorf("%s is not ready: %w%s", c.Name, errors.Join(err, c.Kill()), c.tail())
}

func (c *Component) launch() (<-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running() {
		return nil, fmt.Errorf("%s runs already", c.Name)
	}
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(c.path, c.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(environment(), c.env...)
	if c.notify != "" {
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+c.notify)
	}
	if err := c.box.start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	stopped := make(chan struct{})
	c.cmd, c.stopped = cmd, stopped
	go func() {
		defer close(stopped)
		_ = cmd.Wait() // its result is read from ProcessState
	}()
	return stopped, nil
}

// listenReady returns a channel that gets the outcome of waiting for readiness.
func (c *Component) listenReady(ctx context.Context) (<-chan error, func(), error) {
	ready := make(chan error, 1)
	if c.notify != "" {
		socket, err := listenNotify(c.notify)
		if err != nil {
			return nil, nil, err
		}
		go func() { ready <- socket.awaitReady() }()
		return ready, socket.close, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		ready <- poll(ctx, c.probe)
	}()
	return ready, func() { cancel(); <-finished }, nil
}

// poll calls probe until it answers nil or ctx ends.
func poll(ctx context.Context, probe func(ctx context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// Stop asks the program to end (SIGTERM) and waits. It is an error if it has
// to be killed, or is one of coffer's and ends with anything but success.
// Stopping a component that does not run does nothing.
func (c *Component) Stop() error {
	return c.end(syscall.SIGTERM)
}

// Kill ends the program at once (SIGKILL), as a crash does.
func (c *Component) Kill() error {
	return c.end(syscall.SIGKILL)
}

func (c *Component) end(signal syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		return nil
	}
	if err := c.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", c.Name, err)
	}
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	var late error
	select {
	case <-c.stopped:
	case <-timeout.C:
		late = fmt.Errorf("%s did not end within %s of %v and was killed", c.Name, stopTimeout, signal)
		_ = c.cmd.Process.Kill()
		<-c.stopped
	}
	state := c.cmd.ProcessState
	c.cmd, c.stopped = nil, nil
	if late == nil && c.ours && signal == syscall.SIGTERM && !state.Success() {
		return fmt.Errorf("%s ended with %s%s", c.Name, state, c.tail())
	}
	return late
}

// Restart stops the program and starts it again.
func (c *Component) Restart(ctx context.Context) error {
	return errors.Join(c.Stop(), c.Start(ctx))
}

// Running tells whether the program was started and has not ended.
func (c *Component) Running() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running()
}

// running needs c.mu.
func (c *Component) running() bool {
	if c.cmd == nil {
		return false
	}
	select {
	case <-c.stopped:
		return false
	default:
		return true
	}
}

// Path is the program's file, and Args its arguments.
func (c *Component) Path() string { return c.path }

// Args are the program's arguments; the caller gets a copy.
func (c *Component) Args() []string { return slices.Clone(c.args) }

// PID is the process id of the running program as the caller's namespace
// counts, 0 if it does not run.
func (c *Component) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		return 0
	}
	return c.cmd.Process.Pid
}

// tail is the end of the log, for an error's text.
func (c *Component) tail() string {
	b, err := os.ReadFile(c.Log)
	if err != nil || len(b) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	return fmt.Sprintf("\n%s:\n  %s", filepath.Base(c.Log), strings.Join(lines, "\n  "))
}
