// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// snapshotAmounts are how many snapshots are present, and how many rounds of
// calls are timed.
func (b *bench) snapshotAmounts() (present, rounds int) {
	if b.quick {
		return 500, 2 * rareEvery
	}
	return 10000, 20 * rareEvery
}

// snapshotCost measures the snapshotter beside containerd's own: on a file system
// in memory, which shows what the programs take, and on one on the machine's
// disk, where each change of the metadata waits for the disk.
func (b *bench) snapshotCost(ctx context.Context) (err error) {
	present, rounds := b.snapshotAmounts()
	d, err := b.ground.fresh(ctx, diskBytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	b.say("%d snapshots in each snapshotter", present)
	memory, err := b.run(ctx, job{Kind: "snapshots", Dir: d.dir, Snapshots: present, Rounds: rounds})
	if err != nil {
		return err
	}
	if err := d.moveTo(ctx, filepath.Join(b.cache.dir, "snapshots.ext4")); err != nil {
		return err
	}
	b.say("the same on the machine's disk")
	onDisk, err := b.run(ctx, job{Kind: "snapshots", Dir: d.dir, Snapshots: present, Rounds: rounds / 4})
	if err != nil {
		return err
	}
	b.judgeSnapshots(memory, onDisk, present)
	return nil
}

func (b *bench) judgeSnapshots(memory, onDisk sample, present int) {
	coffer := func(call string) series { return memory.Calls[callKey(cofferSnapshotter, call)] }
	for _, call := range []string{callPrepare, callCommit, callMounts} {
		name, s := "snapshot_"+strings.ToLower(call), coffer(call)
		b.figure(name+"_median", s.median(), "ms", atMost(1))
		b.figure(name+"_p99", s.percentile(99), "ms", atMost(5))
	}
	for _, call := range []string{callPrepare, callCommit, callMounts} {
		other := series(memory.Calls[callKey(overlaySnapshotter, call)])
		b.figure("snapshot_"+strings.ToLower(call)+"_over_overlayfs", coffer(call).median()/other.median(), "ratio of medians", target{})
	}
	title := fmt.Sprintf("Snapshotters behind the proxy, %d snapshots present, ", present)
	b.tables = append(b.tables,
		callTable(title+"file system in memory: ms", memory),
		callTable(title+"file system on the machine's disk: ms", onDisk))
}

func callTable(title string, s sample) table {
	t := table{Title: title, Head: []string{"call", "calls", "coffer, median", "99th percentile", "overlayfs, median", "99th percentile"}}
	row := func(name string, kinds ...string) {
		if len(s.Calls[kinds[0]]) == 0 { // there were too few rounds for it
			return
		}
		cells := []string{name}
		for i, kind := range kinds {
			of := series(s.Calls[kind])
			if i == 0 {
				cells = append(cells, fmt.Sprint(len(of)))
			}
			cells = append(cells, fmt.Sprintf("%.2f", of.median()), fmt.Sprintf("%.2f", of.percentile(99)))
		}
		t.row(cells...)
	}
	for _, call := range snapshotCalls() {
		row(call, callKey(cofferSnapshotter, call), callKey(overlaySnapshotter, call))
	}
	row(callFlush, callFlush)
	return t
}

// callFlush is what each change of the metadata costs at least: bbolt writes and
// flushes twice.
const callFlush = "two flushes of 4 KiB"

// flushes are timed beside the calls.
type flushes struct{ file *os.File }

func newFlushes(dir string) (flushes, error) {
	f, err := os.Create(filepath.Join(dir, "flushes"))
	return flushes{f}, err
}

func (f flushes) time() (ms float64, err error) {
	page := make([]byte, 4<<10)
	began := time.Now()
	for i := range 2 {
		if _, err := f.file.WriteAt(page, int64(i*len(page))); err != nil {
			return 0, err
		}
		if err := unix.Fdatasync(int(f.file.Fd())); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(began)) / float64(time.Millisecond), nil
}

// percentile is the smallest value that p percent of all are not above.
func (s series) percentile(p float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[max(int(math.Ceil(p/100*float64(len(sorted))))-1, 0)]
}
