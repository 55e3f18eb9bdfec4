// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

const maxConfig = 1 << 20

// DecodeStrict reads the TOML file at path into the struct that into points
// to. Fields that the file does not name keep their value, so into usually
// holds the defaults. A key without a field is an error that names the key; errors
// of the file's content begin with path:line.
func DecodeStrict(path string, into any) error {
	b, err := readConfig(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return DecodeText(path, b, into)
}

// DecodeText is DecodeStrict of a text; its errors begin with name:line.
func DecodeText(name string, b []byte, into any) error {
	dec := toml.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		first := &unknown.Errors[0]
		line, _ := first.Position()
		return fmt.Errorf("%s:%d: unknown key %q", name, line, strings.Join(first.Key(), "."))
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		line, _ := bad.Position()
		text := withoutGoType(strings.TrimPrefix(bad.Error(), "toml: "))
		if key := strings.Join(bad.Key(), "."); key != "" {
			text = fmt.Sprintf("key %q: %s", key, text)
		}
		return fmt.Errorf("%s:%d: %s", name, line, text)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// withoutGoType drops the struct that a message about a wrong type spells out.
func withoutGoType(text string) string {
	before, rest, ok := strings.Cut(text, " into struct field ")
	if at := strings.LastIndex(rest, " of type "); ok && at >= 0 {
		return before + " into a value" + rest[at:]
	}
	return text
}

func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxConfig {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxConfig)
	}
	return b, nil
}

// Duration is a time.Duration that a configuration file writes as "90s" or
// "5m".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf(`%q is not a duration such as "90s" or "5m"`, b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }
