// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// firstProcess is what runs as process 1 of a sandbox: it reaps what is
// re-parented to it, as shims are, and does nothing else.
const firstProcess = `mount -n --make-rprivate / && mount -n -t proc proc /proc && echo ready && exec >&- &&
while :; do sleep 1000000 & wait; done`

// sandbox is a process and mount namespace, and the thread that starts
// processes in it.
type sandbox struct {
	first *exec.Cmd
	work  chan func()
	quit  chan struct{}
	done  chan struct{}
}

// newSandbox makes the namespaces. The caller ends them with close.
func newSandbox() (*sandbox, error) {
	s := &sandbox{work: make(chan func()), quit: make(chan struct{}), done: make(chan struct{})}
	entered := make(chan error)
	go s.loop(entered)
	if err := <-entered; err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// loop owns one thread for the sandbox's whole life: the kernel binds both the
// namespaces and the parent-death signal to the thread that starts a process.
// The thread is never given back, so that no other goroutine ends up in it.
func (s *sandbox) loop(entered chan<- error) {
	defer close(s.done)
	runtime.LockOSThread()
	entered <- s.enter()
	for open := true; open; {
		select {
		case f := <-s.work:
			f()
		case <-s.quit:
			open = false
		}
	}
	if s.first.Process != nil {
		_ = s.first.Process.Kill()
		_ = s.first.Wait() // the error only says that it was killed
	}
}

func (s *sandbox) enter() error {
	s.first = exec.Command("/bin/sh", "-c", firstProcess)
	s.first.Stderr = os.Stderr
	s.first.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true,
	}
	out, err := s.first.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.first.Start(); err != nil {
		return fmt.Errorf("make a process and mount namespace: %w (root with CAP_SYS_ADMIN is needed)", err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		return fmt.Errorf("first process of the sandbox ended early: %w", errors.Join(err, s.first.Wait()))
	}
	return s.join()
}

// join moves the calling thread's future children into the namespaces.
func (s *sandbox) join() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	var files []*os.File
	for _, ns := range []string{"pid", "mnt"} {
		f, err := os.Open("/proc/" + strconv.Itoa(s.first.Process.Pid) + "/ns/" + ns)
		if err != nil {
			return err
		}
		defer f.Close()
		files = append(files, f)
	}
	for i, kind := range []int{unix.CLONE_NEWPID, unix.CLONE_NEWNS} {
		if err := unix.Setns(int(files[i].Fd()), kind); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
	}
	return nil
}

// start starts cmd inside the sandbox, in a process group of its own, so that
// a Ctrl-C of the terminal does not reach it.
func (s *sandbox) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	started := make(chan error, 1)
	select {
	case s.work <- func() { started <- cmd.Start() }:
		return <-started
	case <-s.done:
		return errors.New("the testbed is closed")
	}
}

// close kills every process of the sandbox and waits for the first one, after
// which the kernel has ended the rest and dropped the mounts.
func (s *sandbox) close() {
	close(s.quit)
	<-s.done
}

// mounts lists what is mounted at or below dir, as the sandbox sees it.
func (s *sandbox) mounts(dir string) ([]string, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(s.first.Process.Pid) + "/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := mountinfo.GetMountsFromReader(f, mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, err
	}
	points := make([]string, 0, len(list))
	for _, m := range list {
		points = append(points, m.Mountpoint)
	}
	return points, nil
}

// processes lists the command lines of the sandbox's processes, the first one
// and its sleep left out.
func (s *sandbox) processes() ([]string, error) {
	own, err := os.Readlink("/proc/" + strconv.Itoa(s.first.Process.Pid) + "/ns/pid")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == s.first.Process.Pid {
			continue
		}
		if ns, err := os.Readlink("/proc/" + e.Name() + "/ns/pid"); err != nil || ns != own {
			continue // ended meanwhile, or not ours
		}
		if line := commandLine(pid); line != "" && line != "sleep 1000000" {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

func commandLine(pid int) string {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}
