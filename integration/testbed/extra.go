// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import "path/filepath"

// Extra makes one more component of one of coffer's programs, under a name of its
// own: another guest of the same machine, say. The caller starts it, and Close
// stops it before all others.
func (t *Testbed) Extra(name, program string, args ...string) *Component {
	c := t.component(name, t.opts.Programs, args...)
	c.path = filepath.Join(t.opts.Programs, program)
	c.ours = true
	t.extra = append(t.extra, c)
	return c
}
