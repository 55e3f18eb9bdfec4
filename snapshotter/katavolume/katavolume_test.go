// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package katavolume_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/coffer-cc/coffer/snapshotter/katavolume"
)

// golden is what other snapshotters send for every image, and what policies of
// guests that look at it know.
const golden = "io.katacontainers.volume=eyJ2b2x1bWVfdHlwZSI6ImltYWdlX2d1ZXN0X3B1bGwiLCJzb3VyY2UiOiJkdW1teS1pbWFnZS1yZWZlcmVuY2UiLCJpbWFnZV9wdWxsIjp7Im1ldGFkYXRhIjp7fX19"

func option(text string) string {
	return katavolume.OptionPrefix + base64.StdEncoding.EncodeToString([]byte(text))
}

func metadata(m map[string]string) *katavolume.Metadata { return &katavolume.Metadata{Metadata: m} }

func TestOption(t *testing.T) {
	t.Parallel()
	hash := strings.Repeat("0a", 32)
	for name, tc := range map[string]struct {
		volume katavolume.Volume
		want   string
	}{
		"static": {katavolume.Static(), golden},
		"image": {
			katavolume.Volume{
				Type: katavolume.ImageGuestPull, Source: "host:5000/a:b", FSType: "overlayfs", Options: []string{"b=2", "a=1"},
				ImagePull: metadata(map[string]string{"z": "1", "a": "2"}),
			},
			option(`{"volume_type":"image_guest_pull","source":"host:5000/a:b","fs_type":"overlayfs","options":["b=2","a=1"],"image_pull":{"metadata":{"a":"2","z":"1"}}}`),
		},
		"block": {
			katavolume.Volume{Type: katavolume.LayerRawBlock, Source: "/disk", DMVerity: &katavolume.DMVerity{
				HashType: "sha256", Hash: hash, BlockNum: 2, BlockSize: 512, HashSize: 4096, Offset: 4096,
			}},
			option(`{"volume_type":"layer_raw_block","source":"/disk","dm_verity":{"hashtype":"sha256","hash":"` + hash + `","blocknum":2,"blocksize":512,"hashsize":4096,"offset":4096}}`),
		},
		"nydus": {
			katavolume.Volume{Type: katavolume.ImageNydusFS, NydusImage: &katavolume.NydusImage{Config: "c", SnapshotDir: "d"}},
			option(`{"volume_type":"image_nydus_fs","nydus_image":{"config":"c","snapshot_dir":"d"}}`),
		},
		"direct": {
			katavolume.Volume{Type: katavolume.DirectBlock, DirectVolume: metadata(map[string]string{})},
			option(`{"volume_type":"direct_block","direct_volume":{"metadata":{}}}`),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := tc.volume.Option()
			if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
				t.Fatalf("%v %s", err, diff)
			}
			back, err := katavolume.Parse(got)
			if diff := cmp.Diff(tc.volume, back); diff != "" || err != nil {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	const pull = `{"volume_type":"image_guest_pull","source":"a","image_pull":{"metadata":{}}}`
	verity := func(fields string) string {
		return option(`{"volume_type":"image_raw_block","dm_verity":{"hashtype":"sha1","hash":"` + strings.Repeat("0", 40) +
			`","blocknum":1,"blocksize":512,"hashsize":512,"offset":512` + fields + `}}`)
	}
	if _, err := katavolume.Parse(verity(`,"salt":"passed over"`)); err != nil {
		t.Fatal(err)
	}
	for option, text := range map[string]string{
		"lowerdir=/a":                        "does not begin with",
		katavolume.OptionPrefix:              "not a JSON object",
		katavolume.OptionPrefix + "!":        "base64",
		strings.TrimRight(option(pull), "="): "base64",
		golden + "\n":                        "base64",
		option("[]"):                         "not a JSON object",
		option(pull + "{}"):                  "not a JSON object",
		option(`{"source":"a"}`):             "type \"\" is unknown",
		option(`{"volume_type":"other"}`):    "unknown",
		option(strings.Replace(pull, `"source":"a",`, "", 1)):                                     "needs a source",
		option(strings.Replace(pull, `{"metadata":{}}`, "null", 1)):                               "needs image_pull",
		option(strings.Replace(pull, `"metadata":{}`, "", 1)):                                     "metadata must be an object",
		option(strings.Replace(pull, `"a"`, `"`+strings.Repeat("a", 64<<10)+`"`, 1)):              "more than",
		option(`{"volume_type":"image_nydus_fs","nydus_image":{"config":"c","snapshot_dir":""}}`): "snapshot_dir",
		verity(`,"hashtype":"md5"`):                                                               "neither sha256 nor sha1",
		verity(`,"hash":"0"`):                                                                     "40 hexadecimal digits",
		verity(`,"blocknum":0`):                                                                   "0 blocks",
		verity(`,"blocknum":4294967296`):                                                          "4294967296 blocks",
		verity(`,"blocksize":511`):                                                                "a block of 511",
		verity(`,"hashsize":1048576`):                                                             "a block of 1048576",
		verity(`,"hashsize":0`):                                                                   "a block of 0",
		verity(`,"offset":0`):                                                                     "in the data",
		verity(`,"offset":513`):                                                                   "between hash blocks",
	} {
		if _, err := katavolume.Parse(option); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("%.100s: got %v, want %q", option, err, text)
		}
	}
	for _, v := range []katavolume.Volume{
		{},
		{Type: katavolume.ImageGuestPull, Source: "a", ImagePull: metadata(nil)},
		{Type: katavolume.ImageGuestPull, Source: strings.Repeat("a", 64<<10), ImagePull: metadata(map[string]string{})},
	} {
		if got, err := v.Option(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func TestMountType(t *testing.T) {
	t.Parallel()
	for helper, want := range map[string]string{
		katavolume.DefaultHelper:           "fuse.nydus-overlayfs-coffer",
		"nydus-overlayfs":                  "fuse.nydus-overlayfs",
		"/opt/coffer/nydus-overlayfs-v1.2": "fuse./opt/coffer/nydus-overlayfs-v1.2",
		"":                                 "",
		"coffer-overlayfs":                 "",
		"bin/nydus-overlayfs":              "",
		"/nydus-overlayfs/x":               "",
		"/opt//nydus-overlayfs":            "",
		"nydus-overlayfs;reboot":           "",
		"nydus-overlayfs x":                "",
		"-nydus-overlayfs":                 "",
		"nydus-overlayfs\n":                "",
	} {
		got, err := katavolume.MountType(helper)
		if got != want || (err == nil) != (want != "") || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %q, %v", helper, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(golden)
	f.Add(option(`{"volume_type":"image_raw_block","dm_verity":{"hashtype":"sha1","hash":"00","blocknum":1,"blocksize":512,"hashsize":512,"offset":512}}`))
	f.Add(option(`{"volume_type":"image_nydus_fs","nydus_image":{"config":"c","snapshot_dir":"d"},"direct_volume":{"metadata":null}}`))
	f.Fuzz(func(t *testing.T, s string) {
		v, err := katavolume.Parse(s)
		if err != nil {
			return
		}
		again, err := v.Option()
		if err != nil {
			t.Skip() // JSON can be shorter than ours
		}
		back, err := katavolume.Parse(again)
		if err != nil {
			t.Fatalf("%q: %v", again, err)
		}
		if diff := cmp.Diff(v, back, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	})
}
