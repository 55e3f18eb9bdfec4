// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package decompress

import (
	"bytes"
	"encoding/binary"
)

// format is how a layer's tar stream is compressed.
type format string

const (
	formatNone format = "an uncompressed tar"
	formatGzip format = "gzip"
	formatZstd format = "zstd"
)

// formatOf knows every layer media type of OCI and Docker, those that must not
// be pushed to other registries included.
func formatOf(mediaType string) (format, bool) {
	switch mediaType {
	case "application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar":
		return formatNone, true
	case "application/vnd.oci.image.layer.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return formatGzip, true
	case "application/vnd.oci.image.layer.v1.tar+zstd",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
		"application/vnd.docker.image.rootfs.diff.tar.zstd",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.zstd":
		return formatZstd, true
	default:
		return "", false
	}
}

const (
	// magicSize is how many bytes tell the formats apart.
	magicSize = 4

	zstdMagic         = 0xfd2fb528
	zstdSkippable     = 0x184d2a50 // the low four bits are free
	zstdSkippableMask = 0xfffffff0
)

// detect tells the format of a blob from its first bytes. What is neither gzip
// nor zstd counts as uncompressed: the tar reader has the last word there.
func detect(head []byte) format {
	if bytes.HasPrefix(head, []byte{0x1f, 0x8b}) {
		return formatGzip
	}
	if len(head) >= magicSize {
		magic := binary.LittleEndian.Uint32(head)
		if magic == zstdMagic || magic&zstdSkippableMask == zstdSkippable {
			return formatZstd
		}
	}
	return formatNone
}
