// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/containerd/errdefs"
)

const (
	defaultDropIn = "/etc/containerd/conf.d/coffer.toml"
	// askTimeout bounds what is asked of containerd.
	askTimeout = time.Minute
	// lockTimeout is how long another process may take to give up the root.
	lockTimeout = 2 * time.Second
)

// uninstaller takes what coffer-snapshotter keeps on a node away. It looks at
// everything first, and refuses with all reasons at once. What it then does, it
// does in an order in which a run that was cut off can be repeated: containerd's
// records, containerd's configuration, and the files last.
type uninstaller struct {
	config Config
	dropIn string
	dry    bool
	out    io.Writer
}

func uninstall(ctx context.Context, args []string, out io.Writer) error {
	u := uninstaller{out: out}
	flags := flag.NewFlagSet("uninstall", flag.ContinueOnError)
	flags.StringVar(&u.dropIn, "drop-in", defaultDropIn, "")
	flags.BoolVar(&u.dry, "dry-run", false, "")
	path, err := parseFlags(flags, args, out)
	if err != nil {
		return err
	}
	if u.config, err = loadConfig(path); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return u.run(ctx)
}

// run is two steps, between which coffer-snapshotter is stopped: containerd needs
// it to remove snapshots, and it has the files open.
func (u *uninstaller) run(ctx context.Context) error {
	if err := u.checkFolders(); err != nil {
		return err
	}
	clean, err := u.isEmpty(ctx)
	if err != nil {
		return err
	}
	if !clean {
		if err := u.clear(ctx); err != nil {
			return err
		}
	}
	if err := u.removeDropIn(); err != nil {
		return err
	}
	if u.serves() {
		u.say("Still to do: stop it (systemctl disable --now coffer-snapshotter), restart containerd (systemctl restart containerd), and run this again for the files:")
		for _, path := range u.folders() {
			u.say("  %s", path)
		}
		return nil
	}
	return u.removeFiles()
}

func (u *uninstaller) say(format string, args ...any) {
	_, _ = fmt.Fprintf(u.out, format+"\n", args...) // who reads is gone, the work goes on
}

// does says what is done, or in a dry run would be, and whether to do it.
func (u *uninstaller) does(format string, args ...any) bool {
	prefix := ""
	if u.dry {
		prefix = "would "
	}
	u.say(prefix+format, args...)
	return !u.dry
}

// folders are what it keeps, those that are there.
func (u *uninstaller) folders() (paths []string) {
	for _, path := range []string{u.config.Root, u.config.Cache.Root} {
		if _, err := os.Lstat(path); err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

// checkFolders makes sure that the folders are those of coffer-snapshotter before
// anything is done: a wrong configuration must not delete another's files.
func (u *uninstaller) checkFolders() error {
	for _, f := range []struct{ key, path, mark string }{
		{"root", u.config.Root, "metadata.db"},
		{"cache.root", u.config.Cache.Root, "blobs"},
	} {
		entries, err := os.ReadDir(f.path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.key, err)
		}
		if _, err := os.Lstat(filepath.Join(f.path, f.mark)); err != nil {
			return fmt.Errorf("%s: %s has no %s, so it is not coffer-snapshotter's: nothing was removed: %w", f.key, f.path, f.mark, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// isEmpty tells whether there is nothing that containerd could know: no folder,
// or one without snapshots that no process has open.
func (u *uninstaller) isEmpty(context.Context) (bool, error) {
	path := filepath.Join(u.config.Root, "metadata.db")
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if u.serves() {
		return false, nil
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: lockTimeout})
	if err != nil {
		return false, fmt.Errorf("%s: %w: is another coffer-snapshotter running?", path, err)
	}
	defer func() { _ = db.Close() }() // it was only read
	empty := true
	err = db.View(func(tx *bolt.Tx) error {
		v1 := tx.Bucket([]byte("v1"))
		if v1 == nil {
			return nil
		}
		if s := v1.Bucket([]byte("snapshots")); s != nil {
			key, _ := s.Cursor().First()
			empty = key == nil
		}
		return nil
	})
	return empty, err
}

// serves tells whether coffer-snapshotter answers on its socket.
func (u *uninstaller) serves() bool {
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "unix", u.config.Address)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// clear takes the snapshots out of containerd and of the snapshotter, which has
// coffer-guest give up the layers.
func (u *uninstaller) clear(ctx context.Context) error {
	conn, err := dialContainerd(u.config.ContainerdAddress)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // it was only read
	r := records{conn, u.config.Name}
	users, err := r.users(ctx)
	if err != nil {
		return fmt.Errorf("containerd at %s must run, so that its records go too; nothing was removed: %w", u.config.ContainerdAddress, err)
	}
	if len(users) > 0 {
		for _, used := range users {
			u.say("in use by %s", used)
		}
		return fmt.Errorf("%d containers and images need the snapshotter: remove them first; nothing was removed: %w", len(users), errdefs.ErrFailedPrecondition)
	}
	if !u.serves() {
		return fmt.Errorf("coffer-snapshotter must run while containerd forgets its snapshots: systemctl start coffer-snapshotter; nothing was removed: %w", errdefs.ErrFailedPrecondition)
	}
	if !u.does("remove what is left of its snapshots from containerd") {
		return nil
	}
	if _, err := r.remove(ctx); err != nil {
		return fmt.Errorf("remove snapshots from containerd: %w", err)
	}
	return u.checkCleared(ctx)
}

// checkCleared asks the snapshotter itself: what it still has is another
// containerd's.
func (u *uninstaller) checkCleared(ctx context.Context) error {
	own, err := grpc.NewClient("unix://"+u.config.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = own.Close() }() // it was only read
	left, err := records{own, u.config.Name}.snapshots(ctx)
	if err != nil {
		return fmt.Errorf("ask coffer-snapshotter: %w", err)
	}
	if len(left) > 0 {
		return fmt.Errorf("coffer-snapshotter has %d snapshots, such as %s, that containerd at %s does not know: does a second containerd use it? %w", len(left), left[0], u.config.ContainerdAddress, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// removeDropIn removes containerd's drop-in if it is one for this snapshotter.
func (u *uninstaller) removeDropIn() error {
	b, err := os.ReadFile(u.dropIn)
	if errors.Is(err, fs.ErrNotExist) {
		u.say("there is no drop-in %s; if containerd's configuration has [proxy_plugins.%s] elsewhere, take it out", u.dropIn, u.config.Name)
		return nil
	}
	if err != nil {
		return err
	}
	if !bytes.Contains(b, []byte("[proxy_plugins."+u.config.Name+"]")) || !bytes.Contains(b, []byte(u.config.Address)) {
		return fmt.Errorf("%s is not the drop-in for %s: name it with --drop-in: %w", u.dropIn, u.config.Address, errdefs.ErrFailedPrecondition)
	}
	if strings.Contains(string(b), "io.containerd.grpc.v1.cri") {
		u.say("take the lines out of containerd's main file that `coffer-snapshotter config containerd --containerd 1.7 --main` prints")
	}
	if !u.does("remove %s", u.dropIn) {
		return nil
	}
	return os.Remove(u.dropIn)
}

// removeFiles removes the folders and what is left of sockets. What it does not
// own it names.
func (u *uninstaller) removeFiles() error {
	var errs []error
	for _, path := range append(u.folders(), u.config.Address) {
		if _, err := os.Lstat(path); err == nil && u.does("remove %s", path) {
			errs = append(errs, os.RemoveAll(path))
		}
	}
	u.say("kept: %s, the programs and units (make uninstall), and coffer-guest with its layers", defaultConfigPath)
	return errors.Join(errs...)
}
