// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
)

const maxCheckpoint = 64 << 10

// checkpoint is a transparency log's signed tree head: a note (C2SP
// signed-note) with the text of C2SP tlog-checkpoint.
type checkpoint struct {
	origin     string
	size       uint64
	root       []byte
	text       []byte // what is signed, its last newline included
	signatures []noteSignature
}

type noteSignature struct {
	name      string
	hint      []byte // 4 bytes of a hash over the key
	signature []byte
}

func parseCheckpoint(note string) (*checkpoint, error) {
	malformed := errors.New("the log's checkpoint cannot be read")
	text, signatures, ok := strings.Cut(note, "\n\n")
	if !ok || len(note) > maxCheckpoint {
		return nil, malformed
	}
	lines := strings.Split(text, "\n")
	if len(lines) < 3 || lines[0] == "" {
		return nil, malformed
	}
	c := &checkpoint{origin: lines[0], text: []byte(text + "\n")}
	var err error
	if c.size, err = strconv.ParseUint(lines[1], 10, 63); err != nil {
		return nil, malformed
	}
	if c.root, err = base64.StdEncoding.DecodeString(lines[2]); err != nil || len(c.root) != sha256.Size {
		return nil, malformed
	}
	for line := range strings.Lines(signatures) {
		// "— name base64(4 bytes of hint, signature)"
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != "—" {
			return nil, malformed
		}
		raw, err := base64.StdEncoding.DecodeString(fields[2])
		if err != nil || len(raw) <= 4 {
			return nil, malformed
		}
		if len(c.signatures) == maxEntries { // witnesses may sign too
			break
		}
		c.signatures = append(c.signatures, noteSignature{name: fields[1], hint: raw[:4], signature: raw[4:]})
	}
	return c, nil
}

// verify checks that the log signed the checkpoint as its own. Rekor's first
// version writes "host - tree" as the origin; ports may be left out.
func (c *checkpoint) verify(l Log) error {
	origin, _, _ := strings.Cut(c.origin, " - ")
	host, _, _ := strings.Cut(l.Origin, ":")
	if l.Origin != "" && origin != l.Origin && origin != host {
		return errors.New("the checkpoint is of another transparency log")
	}
	for _, s := range c.signatures {
		if bytes.Equal(s.hint, hintOf(l.Key, s.name)) && verifyBlob(l.Key, c.text, s.signature) == nil {
			return nil
		}
	}
	return errors.New("the checkpoint is not signed by a trusted transparency log")
}

// hintOf is the hash by which a note's signature names its key (C2SP
// signed-note). ECDSA keys came first, with a rule of their own.
func hintOf(key crypto.PublicKey, name string) []byte {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil
	}
	var hashed []byte
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		hashed = der
	case ed25519.PublicKey:
		hashed = append([]byte(name+"\n\x01"), k...)
	case *rsa.PublicKey:
		hashed = append([]byte(name+"\n\xffPKIX-RSA-PKCS#1v1.5"), der...)
	}
	sum := sha256.Sum256(hashed)
	return sum[:4]
}
