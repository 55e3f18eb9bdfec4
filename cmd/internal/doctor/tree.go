// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package doctor

// tree is a decoded TOML or YAML file of which only some keys are of interest.
type tree map[string]any

// get is what is at the keys, or nil.
func (t tree) get(keys ...string) any {
	var at any = map[string]any(t)
	for _, k := range keys {
		table, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = table[k]
	}
	return at
}

func (t tree) table(keys ...string) tree {
	m, _ := t.get(keys...).(map[string]any)
	return m
}

func (t tree) str(keys ...string) string {
	s, _ := t.get(keys...).(string)
	return s
}

// is tells whether a boolean is there and has that value.
func (t tree) is(value bool, keys ...string) bool {
	b, ok := t.get(keys...).(bool)
	return ok && b == value
}

// tables are the tables of a list.
func (t tree) tables(keys ...string) (all []tree) {
	list, _ := t.get(keys...).([]any)
	for _, e := range list {
		if m, ok := e.(map[string]any); ok {
			all = append(all, m)
		}
	}
	return all
}

func (t tree) strings(keys ...string) (all []string) {
	list, _ := t.get(keys...).([]any)
	for _, e := range list {
		if s, ok := e.(string); ok {
			all = append(all, s)
		}
	}
	return all
}
