// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"sync"

	"github.com/coffer-cc/coffer/imagepull/decompress"
)

// kit is the memory that layers need while they are on their way, and that the
// next ones use again. It is let go of when no layer is on its way. The zero kit
// is ready.
type kit struct {
	decoders decompress.Pool

	mu    sync.Mutex
	taken int     // rings; guarded by mu, as is idle
	idle  []*ring // nil while nothing is taken
}

func (k *kit) take() *ring {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.taken++
	n := len(k.idle)
	if n == 0 {
		return new(ring)
	}
	r := k.idle[n-1]
	k.idle = k.idle[:n-1]
	return r
}

// giveBack is for rings that nobody uses any more.
func (k *kit) giveBack(rings ...*ring) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.taken -= len(rings); k.taken == 0 {
		k.idle = nil
		return
	}
	k.idle = append(k.idle, rings...)
}
