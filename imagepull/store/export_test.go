// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

// OpenBooted is Open under a kernel that was booted as bootID.
func OpenBooted(root string, opts Options, bootID string) (*Store, error) {
	return openBooted(root, opts, bootID)
}

// Abandon lets go of a store as the death of its process does: nothing is
// flushed or written.
func (s *Store) Abandon() error { return release(s.lock) }
