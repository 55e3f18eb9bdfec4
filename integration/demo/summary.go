// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// summary is the demo's result for programs: .demo/summary.json.
type summary struct {
	// Image names the image that was encrypted.
	Image string `json:"image"`
	// Layers counts the image's layers, EncryptedLayers those that the
	// registry has encrypted.
	Layers          int `json:"layers"`
	EncryptedLayers int `json:"encryptedLayers"`
	// Attestations counts the handshakes that coffer-kbs had seen when the
	// image had run in both ways.
	Attestations int `json:"attestations"`
	// PullSeconds is how long crictl's pull took.
	PullSeconds float64 `json:"pullSeconds"`
	// HostLayerBlobs counts the layers in containerd's content store.
	HostLayerBlobs int `json:"hostLayerBlobs"`
	// DeniedRun tells that the run against a denying policy was refused;
	// DeniedReason is the error that the user saw.
	DeniedRun    bool   `json:"deniedRun"`
	DeniedReason string `json:"deniedReason"`
	// PeakGuestRSSBytes is the most memory that coffer-guest had in RAM.
	PeakGuestRSSBytes int64 `json:"peakGuestRSSBytes"`
}

// write replaces the file at path.
func (s summary) write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	partial := path + ".partial"
	if err := os.WriteFile(partial, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(partial, path)
}
