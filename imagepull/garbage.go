// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// A guest's memory is small and mostly for containers: garbage may take so many
// bytes, or half of what the collector must look through if that is more. A
// percentage alone is wrong at both ends: nearly all that is alive during a pull
// can be windows of zstd, which cost no looking through, and hardly anything is
// when a pull of gzip makes as much garbage. A fixed limit for all memory is
// worse, since the collector runs all the time once what is alive is near it.
const (
	garbageBytes   = 2 << 20
	garbagePercent = 50
)

// BoundGarbage has the garbage collector of this process keep to that, for good.
// It is for a program that does little else than pull, and to be called once.
func BoundGarbage() {
	now := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/heap:bytes"}}
	metrics.Read(now)
	debug.SetGCPercent(gcPercent(now[0].Value.Uint64(), now[1].Value.Uint64()))
	// Again after each collection: that is when the runtime finds the sentinel,
	// which each call makes anew, unreachable.
	sentinel := new(struct{ _ *byte }) // with a pointer, so that it shares no block with others
	runtime.AddCleanup(sentinel, func(struct{}) { BoundGarbage() }, struct{}{})
}

// gcPercent is what SetGCPercent takes where so many bytes are alive, and so
// many of them may have pointers.
func gcPercent(live, scan uint64) int {
	if live == 0 { // before the first collection
		return garbagePercent
	}
	allowed := max(garbageBytes, scan*garbagePercent/100)
	return int(min(max(allowed*100/live, 1), 100))
}
