// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// job is what a child process is to do, in JSON on its standard input.
type job struct {
	// Kind is the name of the work.
	Kind string
	// Cache, Registry and Dir say where images are made, served, unpacked to.
	Cache, Registry, Dir string
	// Images are pulled, all at once.
	Images []string
	// Tree asks for a digest of what was unpacked, layer by layer.
	Tree bool
	// Generate is the image to be made.
	Generate *image
	// Snapshots are present while Rounds of calls are timed.
	Snapshots, Rounds int
}

// sample is what a child measured of its work; its own start and end do not
// count. CPU is of all its threads and of programs it started.
type sample struct {
	Wall, CPU float64 // seconds
	RSS       int64   // bytes, at the peak
	Mallocs   uint64  // heap objects
	Allocated uint64  // bytes of them
	// Stages are CPU seconds for each stage and layer.
	Stages map[string][]float64 `json:",omitempty"`
	// Calls are milliseconds of single calls, by contender and call.
	Calls map[string][]float64 `json:",omitempty"`
	// Trees are digests of the layers as unpacked, bottom first.
	Trees []string `json:",omitempty"`
}

// measure runs work and says what it took.
func measure(work func() error) (sample, error) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	cpu, began := allCPU(), time.Now()
	err := work()
	s := sample{Wall: time.Since(began).Seconds(), CPU: (allCPU() - cpu).Seconds()}
	runtime.ReadMemStats(&after)
	s.Mallocs, s.Allocated = after.Mallocs-before.Mallocs, after.TotalAlloc-before.TotalAlloc
	if err == nil {
		s.RSS, err = peakRSS(os.Getpid())
	}
	return s, err
}

func allCPU() time.Duration { return cpuTime(unix.RUSAGE_SELF) + cpuTime(unix.RUSAGE_CHILDREN) }

func cpuTime(who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		return 0 // not possible with these arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peakRSS is the most memory a process has had in RAM since its exec, which
// ru_maxrss is not: that counts its parent's memory too.
func peakRSS(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmHWM in /proc/PID/status")
}

// runChild does a job in a process of its own.
func runChild(ctx context.Context, j job) (sample, error) {
	var s sample
	in, err := json.Marshal(j)
	if err != nil {
		return s, err
	}
	cmd, err := self(ctx, "child")
	if err != nil {
		return s, err
	}
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	if err := cmd.Run(); err != nil {
		return s, errors.Join(ctx.Err(), fmt.Errorf("%s %s: %w: %s", j.Kind, strings.Join(j.Images, " "), err, strings.TrimSpace(errs.String())))
	}
	return s, json.Unmarshal(out.Bytes(), &s)
}

// self is this program as a child that does not outlive it.
func self(ctx context.Context, args ...string) (*exec.Cmd, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	// containerd must not find other programs for what it does itself.
	cmd.Env = append(os.Environ(), "CONTAINERD_DISABLE_IGZIP=1", "CONTAINERD_DISABLE_PIGZ=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, nil
}

// child is the other side of runChild.
func child(ctx context.Context) error {
	var j job
	if err := json.NewDecoder(os.Stdin).Decode(&j); err != nil {
		return err
	}
	work, known := jobs()[j.Kind]
	if !known {
		return fmt.Errorf("unknown job %q", j.Kind)
	}
	s, err := work(ctx, j)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

func jobs() map[string]func(context.Context, job) (sample, error) {
	return map[string]func(context.Context, job) (sample, error){
		"generate":            generate,
		"coffer":              pullWithCoffer,
		"coffer-verify-first": pullVerifyFirst,
		"sequential":          func(ctx context.Context, j job) (sample, error) { return pullWithContainerd(ctx, j, false) },
		"parallel":            func(ctx context.Context, j job) (sample, error) { return pullWithContainerd(ctx, j, true) },
		"skopeo":              pullWithSkopeo,
		"blob":                blobStages,
		"tar":                 tarStages,
		"apply":               applyStage,
		"reference":           referenceApply,
		"snapshots":           snapshotsJob,
	}
}
