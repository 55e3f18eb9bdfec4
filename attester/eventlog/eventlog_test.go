// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package eventlog_test

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/attester/eventlog"
)

// registers are kept in memory. fail makes the next extension fail: before it
// was done, or after.
type registers struct {
	values                map[uint32][]byte
	failBefore, failAfter bool
	extensions            int
}

func newRegisters() *registers { return &registers{values: make(map[uint32][]byte)} }

func (*registers) RegisterHash() crypto.Hash { return crypto.SHA384 }

func (*registers) Register(pcr uint64) uint32 {
	if pcr == eventlog.DefaultPCR {
		return 4
	}
	return 3
}

func (r *registers) ReadRegister(register uint32) ([]byte, error) {
	if v, ok := r.values[register]; ok {
		return v, nil
	}
	return make([]byte, 48), nil
}

func (r *registers) ExtendRegister(register uint32, digest []byte) error {
	if r.failBefore {
		return errors.New("refused")
	}
	is, _ := r.ReadRegister(register)
	h := crypto.SHA384.New()
	h.Write(is)
	h.Write(digest)
	r.values[register] = h.Sum(nil)
	r.extensions++
	if r.failAfter {
		return errors.New("cut off")
	}
	return nil
}

func pullEvent(content string) eventlog.Event {
	return eventlog.Event{Domain: "github.com/confidential-containers", Operation: "PullImage", Content: content}
}

// The digests that the Attestation Agent of guest-components makes of the same
// event.
func TestDigest(t *testing.T) {
	t.Parallel()
	e := eventlog.Event{Domain: "domain", Operation: "operation", Content: "content"}
	for hash, want := range map[crypto.Hash]string{
		crypto.SHA256: "46df8dacf00a07d34a83cdf56d7978697790787cf2ba1432ef7c38f22cd96351",
		crypto.SHA384: "dad5f0e226318ffa9839b75a472c6aa7fdb5834949d0a0a22990cf04d5692440fb00f3aa0609db7e49cd8d793f670d02",
		crypto.SHA512: "b708d222ca8bd44dfe6ba0c4ca2cbb72379276fba8091025217064be45a813e5d6124ccf073219edb617d1faf007d55061465bdf34b7437dbdc9a7405bd4e9c0",
	} {
		if got := hex.EncodeToString(e.Digest(hash)); got != want {
			t.Errorf("%v: %s", hash, got)
		}
	}
}

func replayEquals(t *testing.T, l *eventlog.Log, r *registers) {
	t.Helper()
	entries, err := l.Entries()
	if err != nil {
		t.Fatal(err)
	}
	joined, err := eventlog.Join(nil, entries)
	if err != nil {
		t.Fatal(err)
	}
	got, err := eventlog.Replay(joined, crypto.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r.values, got); diff != "" {
		t.Errorf("-registers +log\n%s", diff)
	}
}

func TestExtend(t *testing.T) {
	t.Parallel()
	dir, r := filepath.Join(t.TempDir(), "aa"), newRegisters()
	for range 2 { // also after a restart
		l, err := eventlog.Open(dir, r)
		if err != nil {
			t.Fatal(err)
		}
		for _, pcr := range []uint64{eventlog.DefaultPCR, 8} {
			if err := l.Extend(pullEvent(`{"image":"a b"}`), pcr); err != nil {
				t.Fatal(err)
			}
		}
		replayEquals(t, l, r)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("%d files are left", len(files))
	}
}

func TestEventsThatAreRefused(t *testing.T) {
	t.Parallel()
	l, err := eventlog.Open(t.TempDir(), newRegisters())
	if err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]eventlog.Event{
		"no domain":          {Operation: "o", Content: "c"},
		"blank in domain":    {Domain: "a b", Operation: "o"},
		"blank in operation": {Domain: "d", Operation: "o o"},
		"two lines":          pullEvent("a\nb"),
		"zero byte":          pullEvent("a\x00b"),
		"not UTF-8":          pullEvent("\xff"),
		"too long":           pullEvent(strings.Repeat("x", 65<<10)),
	} {
		if err := l.Extend(e, eventlog.DefaultPCR); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
	if b, err := l.Entries(); err != nil || len(b) != 0 {
		t.Errorf("the log has %d bytes, %v", len(b), err)
	}
}

// An extension that fails is undone if the register did not move, and else
// completed at the next start.
func TestFailedExtension(t *testing.T) {
	t.Parallel()
	dir, r := t.TempDir(), newRegisters()
	l, err := eventlog.Open(dir, r)
	if err != nil {
		t.Fatal(err)
	}
	r.failBefore = true
	if err := l.Extend(pullEvent("1"), 17); err == nil {
		t.Error("no error")
	}
	r.failBefore = false
	if err := l.Extend(pullEvent("2"), 17); err != nil {
		t.Fatal(err)
	}
	r.failAfter = true
	if err := l.Extend(pullEvent("3"), 17); err == nil {
		t.Error("no error")
	}
	r.failAfter = false
	if err := l.Extend(pullEvent("4"), 17); err == nil || !strings.Contains(err.Error(), "restarted") {
		t.Errorf("a log that may differ from its register goes on: %v", err)
	}
	if l, err = eventlog.Open(dir, r); err != nil {
		t.Fatal(err)
	}
	replayEquals(t, l, r)
	if r.extensions != 2 {
		t.Errorf("%d extensions", r.extensions)
	}
}

// A crash at any point between two files leaves what the next start completes.
func TestCrash(t *testing.T) {
	t.Parallel()
	for _, pcr := range []uint64{17, 8} {
		// The journal and the log of an extension that was cut off after it.
		dir, r := t.TempDir(), newRegisters()
		l, err := eventlog.Open(dir, r)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Extend(pullEvent("before"), 17); err != nil {
			t.Fatal(err)
		}
		before, old := maps.Clone(r.values), read(t, dir, "eventlog")
		r.failAfter = true
		if err := l.Extend(pullEvent("crash"), pcr); err == nil {
			t.Fatal("no error")
		}
		r.failAfter = false
		journal, after := read(t, dir, ".wal_event_entry"), maps.Clone(r.values)
		done, err := eventlog.Open(dir, r)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := done.Entries()
		if err != nil {
			t.Fatal(err)
		}
		for name, values := range map[string]map[uint32][]byte{"before the register": before, "after it": after} {
			for size := len(old); size <= len(whole); size++ {
				dir, r := t.TempDir(), newRegisters()
				r.values = maps.Clone(values)
				write(t, dir, "eventlog", whole[:size])
				write(t, dir, ".wal_event_entry", journal)
				write(t, dir, ".wal_event_entry-123", journal[:9])
				l, err := eventlog.Open(dir, r)
				if err != nil {
					t.Fatalf("%s, %d bytes: %v", name, size, err)
				}
				replayEquals(t, l, r)
				if !bytes.Equal(read(t, dir, "eventlog"), whole) {
					t.Errorf("%s, %d bytes: another log", name, size)
				}
			}
		}
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	dir, r := t.TempDir(), newRegisters()
	l, err := eventlog.Open(dir, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Extend(pullEvent("1"), 17); err != nil {
		t.Fatal(err)
	}
	whole := read(t, dir, "eventlog")
	write(t, dir, "eventlog", whole[:len(whole)-1])
	if _, err := eventlog.Open(dir, r); !errdefs.IsDataLoss(err) {
		t.Errorf("a cut log: got error %v", err)
	}
	write(t, dir, "eventlog", whole)
	r.failAfter = true
	if err := l.Extend(pullEvent("2"), 17); err == nil {
		t.Fatal("no error")
	}
	r.failAfter = false
	if err := r.ExtendRegister(4, make([]byte, 48)); err != nil {
		t.Fatal(err)
	}
	if _, err := eventlog.Open(dir, r); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("a register that moved: got error %v", err)
	}
	for _, journal := range []string{"", "12345678", "\xff" + strings.Repeat("x", 80), strings.Repeat("\x00", 56) + "no event"} {
		write(t, dir, ".wal_event_entry", []byte(journal))
		if _, err := eventlog.Open(dir, r); !errdefs.IsDataLoss(err) {
			t.Errorf("journal %.20q: got error %v", journal, err)
		}
	}
}

// What was cut off or taken away is not made up for with zeros, at which
// verifiers stop reading.
func TestGaps(t *testing.T) {
	t.Parallel()
	dir, r := t.TempDir(), newRegisters()
	l, err := eventlog.Open(dir, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Extend(pullEvent("1"), 17); err != nil {
		t.Fatal(err)
	}
	whole := read(t, dir, "eventlog")
	write(t, dir, "eventlog", slices.Concat(whole, make([]byte, 16), whole))
	if _, err := eventlog.Open(dir, r); !errdefs.IsDataLoss(err) {
		t.Errorf("zeros in the log: got error %v", err)
	}
	write(t, dir, "eventlog", whole)
	r.failAfter = true
	if err := l.Extend(pullEvent("2"), 17); err == nil {
		t.Fatal("no error")
	}
	r.failAfter = false
	if err := os.Remove(filepath.Join(dir, "eventlog")); err != nil {
		t.Fatal(err)
	}
	if _, err := eventlog.Open(dir, r); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "lacks entries") {
		t.Errorf("a log that is gone: got error %v", err)
	}
}

// Without a look at the log nothing is extended.
func TestLogThatCannotBeSeen(t *testing.T) {
	t.Parallel()
	dir, r := t.TempDir(), newRegisters()
	l, err := eventlog.Open(dir, r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "eventlog")
	if err := os.Symlink(path, path); err != nil { // to itself
		t.Fatal(err)
	}
	if err := l.Extend(pullEvent("1"), 17); err == nil || r.extensions != 0 {
		t.Errorf("%d extensions, error %v", r.extensions, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := l.Extend(pullEvent("1"), 17); err != nil {
		t.Error(err)
	}
	replayEquals(t, l, r)
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Real logs, one of them with events of an Attestation Agent, replay to what the
// digests say that another parser found in them.
func TestRealLogs(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"CCEL_AAEL_alibabacloud", "CCEL_data", "CCEL_data_grub", "CCEL_data_ovmf"} {
		log, err := os.ReadFile(filepath.Join("../../../shared/vectors/ccel", name))
		if err != nil {
			if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "vectors") {
				t.Fatal(err)
			}
			t.Skip(err)
		}
		var want struct {
			Events []struct {
				Index   uint32 `json:"index"`
				Type    string `json:"type_name"`
				Digests []struct{ Alg, Digest string }
			} `json:"uefi_event_logs"`
		}
		b, err := os.ReadFile(filepath.Join("../../../shared/vectors/ccel", name+"_out.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		expected := make(map[uint32][]byte)
		for _, e := range want.Events {
			if e.Type == "EV_NO_ACTION" {
				continue
			}
			digest, err := hex.DecodeString(e.Digests[0].Digest)
			if err != nil {
				t.Fatal(err)
			}
			is, ok := expected[e.Index]
			if !ok {
				is = make([]byte, 48)
			}
			h := crypto.SHA384.New()
			h.Write(is)
			h.Write(digest)
			expected[e.Index] = h.Sum(nil)
		}
		got, err := eventlog.Replay(log, crypto.SHA384)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(expected, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
		joined, err := eventlog.Join(log, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if again, err := eventlog.Replay(joined, crypto.SHA384); err != nil || !cmp.Equal(again, got) {
			t.Errorf("%s: without its padding it replays to something else: %v", name, err)
		}
	}
}

func FuzzReplay(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(make([]byte, 4), 3, 0, 0, 0))
	log := make([]byte, 32)
	log[4] = 3
	f.Add(append(log, 4, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, 0xb, 0))
	f.Fuzz(func(t *testing.T, log []byte) {
		_, replayErr := eventlog.Replay(log, crypto.SHA256)
		joined, err := eventlog.Join(log, nil)
		if replayErr == nil && err != nil && len(log) > 0 {
			t.Errorf("a log that replays does not join: %v", err)
		}
		if err == nil && len(joined) > len(log)+8 {
			t.Error("it grew")
		}
	})
}
