// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import "fmt"

// Rest says what is not as it is where nothing is pulled; empty if all is.
func (p *Puller) Rest() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := []int{p.downloads.taken(), p.unpacks.taken(), len(p.downloads.turns), len(p.unpacks.turns),
		len(p.pulls), len(p.flights), len(p.contents), len(p.bundles), p.kit.taken}
	for _, m := range n {
		if m != 0 {
			return fmt.Sprintf("places taken %v, waiting %v, pulls, flights, contents and bundles %v, rings %d", n[:2], n[2:4], n[4:8], n[8])
		}
	}
	return ""
}

// taken is how many places are in use.
func (p *places) taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inside
}
