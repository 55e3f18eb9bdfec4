// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	somePasswd = "root:x:0:0:root:/root:/bin/sh\n# comment\nbad\napp:x:7:8::/:\nbroken:x:x:1::/:\nsecond:x:7:9::/:\n"
	someGroup  = "root:x:0:\nmore:x:9:x,app\nother:x:10:app,\nstaff:x:50:\n"
)

func TestLookupUser(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]*specs.User{
		"":            {AdditionalGids: []uint32{0}},
		"root":        {AdditionalGids: []uint32{0}},
		"app":         {UID: 7, GID: 8, AdditionalGids: []uint32{8, 9, 10}},
		"7":           {UID: 7, GID: 8, AdditionalGids: []uint32{8, 9, 10}},
		"1000":        {UID: 1000, AdditionalGids: []uint32{0}},
		"app:staff":   {UID: 7, GID: 50, AdditionalGids: []uint32{50, 9, 10}},
		"1000:1001":   {UID: 1000, GID: 1001, AdditionalGids: []uint32{1001}},
		":staff":      {GID: 50, AdditionalGids: []uint32{50}},
		"app:":        {UID: 7, GID: 8, AdditionalGids: []uint32{8, 9, 10}},
		"second":      {UID: 7, GID: 9, AdditionalGids: []uint32{9}},
		"nobody":      nil,
		"broken":      nil,
		"app:nogroup": nil,
		"-1":          nil,
		"4294967296":  nil,
	} {
		got, err := lookupUser(in, somePasswd, someGroup)
		if want == nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: got %+v %v", in, got, err)
			}
			continue
		}
		if diff := cmp.Diff(*want, got); diff != "" || err != nil {
			t.Errorf("%q: %v %s", in, err, diff)
		}
	}
}

func FuzzLookupUser(f *testing.F) {
	f.Add("app:staff", somePasswd, someGroup)
	f.Add("", "", "")
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		u, err := lookupUser(user, passwd, group)
		if err == nil && (u.UID > maxID || u.GID > maxID) {
			t.Errorf("got %+v", u)
		}
	})
}
