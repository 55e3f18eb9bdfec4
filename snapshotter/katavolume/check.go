// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package katavolume

import (
	"encoding/hex"
	"math"
)

// DMVerity is how the guest verifies a block device. Sizes and the offset of
// the hashes are in bytes.
type DMVerity struct {
	HashType  string `json:"hashtype"`
	Hash      string `json:"hash"`
	BlockNum  uint64 `json:"blocknum"`
	BlockSize uint64 `json:"blocksize"`
	HashSize  uint64 `json:"hashsize"`
	Offset    uint64 `json:"offset"`
}

const (
	minBlockSize = 512
	maxBlockSize = 512 << 10
)

// check reports the first thing for which a Kata would refuse the volume.
func (v Volume) check() error {
	switch v.Type {
	case ImageGuestPull:
		switch {
		case v.Source == "":
			return invalid("%s needs a source", v.Type)
		case v.ImagePull == nil:
			return invalid("%s needs image_pull", v.Type)
		}
	case ImageNydusBlock, LayerNydusBlock, ImageNydusFS, LayerNydusFS:
		if v.NydusImage == nil || v.NydusImage.Config == "" || v.NydusImage.SnapshotDir == "" {
			return invalid("%s needs nydus_image with config and snapshot_dir", v.Type)
		}
	case DirectBlock, ImageRawBlock, LayerRawBlock:
	default:
		return invalid("volume type %q is unknown", v.Type)
	}
	for _, m := range []*Metadata{v.DirectVolume, v.ImagePull} {
		if m != nil && m.Metadata == nil {
			return invalid("metadata must be an object")
		}
	}
	if v.DMVerity != nil {
		return v.DMVerity.check()
	}
	return nil
}

func (d DMVerity) check() error {
	digits := map[string]int{"sha256": 64, "sha1": 40}[d.HashType]
	if digits == 0 {
		return invalid("dm_verity: hash type %q is neither sha256 nor sha1", d.HashType)
	}
	if _, err := hex.DecodeString(d.Hash); err != nil || len(d.Hash) != digits {
		return invalid("dm_verity: hash %.80q is not %d hexadecimal digits", d.Hash, digits)
	}
	if d.BlockNum == 0 || d.BlockNum > math.MaxUint32 {
		return invalid("dm_verity: %d blocks", d.BlockNum)
	}
	for _, size := range []uint64{d.BlockSize, d.HashSize} {
		if size < minBlockSize || size > maxBlockSize {
			return invalid("dm_verity: a block of %d bytes is not between %d and %d", size, minBlockSize, maxBlockSize)
		}
	}
	if d.Offset%d.HashSize != 0 || d.Offset < d.BlockSize*d.BlockNum {
		return invalid("dm_verity: hashes at offset %d, which is in the data or between hash blocks", d.Offset)
	}
	return nil
}
