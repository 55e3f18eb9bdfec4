// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

// Report says how an image is encrypted. Its JSON form is stable.
type Report struct {
	Reference string        `json:"reference"`
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Images    []ImageReport `json:"images"`
}

// ImageReport is about one platform's image.
type ImageReport struct {
	Digest   digest.Digest `json:"digest"`
	Platform string        `json:"platform,omitempty"`
	Layers   []LayerReport `json:"layers"`
}

// LayerReport is about one layer. It shows what the manifest claims: without
// a key nobody can tell whether it is true.
type LayerReport struct {
	Digest     digest.Digest     `json:"digest"`
	Size       int64             `json:"size"` // bytes
	MediaType  string            `json:"mediaType"`
	Encrypted  bool              `json:"encrypted"`
	Cipher     string            `json:"cipher,omitempty"`
	Recipients []RecipientReport `json:"recipients,omitempty"`
	// Problems tell why the layer could not be decrypted as it is.
	Problems []string `json:"problems,omitempty"`
}

// RecipientReport is about one wrapped copy of a layer's key.
type RecipientReport struct {
	// Scheme is "kbs", "jwe", "pkcs7", "pgp", … or "provider.NAME".
	Scheme string `json:"scheme"`
	// KeyIDs name the keys that unwrap the copy, where the packet does: the
	// kbs URI, a JWE kid, issuer and serial number of a certificate.
	KeyIDs []string `json:"keyIDs,omitempty"`
	// Algorithm is how the copy is wrapped, where the packet says so.
	Algorithm string `json:"algorithm,omitempty"`
	// Count is how many recipients share the copy.
	Count int `json:"count"`
}

// Encrypted counts the encrypted layers of all images, and all layers.
func (r Report) Encrypted() (encrypted, all int) {
	for _, image := range r.Images {
		for _, layer := range image.Layers {
			all++
			if layer.Encrypted {
				encrypted++
			}
		}
	}
	return encrypted, all
}

// Inspect reads manifests only, and needs no key. A layer with annotations
// that make no sense is reported, and is no error.
func Inspect(ctx context.Context, ref Reference, access Access) (Report, error) {
	from := open(ref, access)
	desc, data, err := from.root(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("inspect: %w", err)
	}
	p := &plan{}
	root, err := p.load(ctx, from, desc, data, 0)
	if err != nil {
		return Report{}, fmt.Errorf("inspect %s: %w", ref, err)
	}
	report := Report{Reference: ref.String(), Digest: desc.Digest, MediaType: desc.MediaType}
	if err := report.add(ctx, from, root); err != nil {
		return Report{}, fmt.Errorf("inspect %s: %w", ref, err)
	}
	return report, nil
}

func (r *Report) add(ctx context.Context, from source, n *node) error {
	for _, child := range n.children {
		if err := r.add(ctx, from, child); err != nil {
			return err
		}
	}
	if n.manifest == nil {
		return nil
	}
	platform := n.desc.Platform
	if platform == nil && n.manifest.Config.Size <= maxConfig {
		// A report without the platform is better than none.
		if p, err := configPlatform(ctx, from, n.manifest.Config); err == nil && p.OS != "" {
			platform = p
		} else if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	image := ImageReport{Digest: n.desc.Digest, Platform: printable(formatPlatform(platform))}
	for _, layer := range n.manifest.Layers {
		image.Layers = append(image.Layers, inspectLayer(layer))
	}
	r.Images = append(r.Images, image)
	return nil
}

// inspectLayer reads the annotations of one layer.
func inspectLayer(layer ocispec.Descriptor) LayerReport {
	report := LayerReport{
		Digest: digest.Digest(printable(layer.Digest.String())), Size: layer.Size, MediaType: printable(layer.MediaType),
		Encrypted: layercrypt.IsEncrypted(layer.MediaType),
	}
	if !report.Encrypted {
		if hasKeys(layer) {
			report.problem("it has key annotations, but the media type of a plain layer")
		}
		return report
	}
	report.readCipher(layer.Annotations)
	var ids []string
	for id := range layer.Annotations {
		if strings.HasPrefix(id, keysPrefix) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		report.readPackets(id, layer.Annotations[id])
	}
	if len(ids) == 0 {
		report.problem("it has no key annotation: nobody can decrypt it")
	}
	return report
}

func (r *LayerReport) problem(format string, args ...any) {
	r.Problems = append(r.Problems, printable(fmt.Sprintf(format, args...)))
}

// readCipher reports the cipher also where layercrypt refuses the options.
func (r *LayerReport) readCipher(annotations map[string]string) {
	if _, err := layercrypt.PublicOptionsOf(annotations); err != nil {
		r.problem("%v", err)
	}
	data, err := base64.StdEncoding.DecodeString(annotations[layercrypt.PublicOptionsKey])
	if err != nil {
		return
	}
	var options struct {
		Cipher string `json:"cipher"`
	}
	if json.Unmarshal(data, &options) == nil {
		r.Cipher = printable(options.Cipher)
	}
}

func (r *LayerReport) readPackets(id, value string) {
	packets, err := layercrypt.KeyPackets(map[string]string{id: value})
	if err != nil {
		r.problem("%v", err)
		return
	}
	for _, packet := range packets {
		recipient, err := inspectPacket(packet)
		if err != nil {
			r.problem("%s: %v", packet.Scheme, err)
		}
		r.Recipients = append(r.Recipients, recipient)
	}
}
