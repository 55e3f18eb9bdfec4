// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester"
	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/attester/initdata"
	aaservice "github.com/coffer-cc/coffer/attester/service"
	"github.com/coffer-cc/coffer/cmd/internal/daemon"
)

// configEntry is the entry of the init-data that is laid over the
// configuration file.
const configEntry = "guest.toml"

// bind reads the init-data and compares it with what the TEE was launched with.
// Only then anything in it counts: its entry guest.toml, which is laid over
// conf, and what references name. An init-data that cannot be checked is an
// error, but with the sample TEE, which nobody is to trust anyway.
func (g *guest) bind(ctx context.Context, conf Config, tee aaservice.EvidenceSource) (Config, error) {
	if conf.InitData == "" {
		return conf, nil
	}
	doc, err := readInitData(conf.InitData)
	if err != nil {
		return conf, fmt.Errorf("initdata: %s: %w", conf.InitData, err)
	}
	agent, ok := tee.(*attester.Agent)
	if !ok {
		return conf, fmt.Errorf("initdata: nothing says that it is genuine, for this machine is no TEE: run this in one, or configure no init-data: %w", errdefs.ErrFailedPrecondition)
	}
	err = agent.CheckInitData(ctx, doc.Digest())
	switch sample := agent.TEE() == string(evidence.Sample); {
	case err == nil:
		g.log.InfoContext(ctx, "init-data: this TEE was launched with it", "algorithm", doc.Algorithm(), "digest", hex.EncodeToString(doc.Digest()), "entries", doc.Names())
	case sample && errdefs.IsNotImplemented(err):
		g.log.WarnContext(ctx, "init-data: it is believed, for the sample TEE measures nothing", "digest", hex.EncodeToString(doc.Digest()), "entries", doc.Names())
	default:
		return conf, fmt.Errorf("initdata: %s: %w", conf.InitData, err)
	}
	g.initData = doc
	text, ok := doc.Entry(configEntry)
	if !ok {
		return conf, nil
	}
	if conf, err = conf.overlaid(text); err != nil {
		return conf, fmt.Errorf("initdata: %w", err)
	}
	return conf, nil
}

// readInitData reads a file or a block device. What is neither, as a pipe, could
// keep the start waiting.
func readInitData(path string) (*initdata.Document, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	if m := info.Mode(); !m.IsRegular() && m.Type() != os.ModeDevice {
		return nil, fmt.Errorf("neither a file nor a block device: %w", errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	defer f.Close()
	return initdata.Read(f)
}

// describeInitData is for who launches the TEE.
func describeInitData(out io.Writer, path string) error {
	doc, err := readInitData(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if text, ok := doc.Entry(configEntry); ok {
		if _, err := Default().overlaid(text); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	tdx, snp := initdata.Fit(doc.Digest(), 48), initdata.Fit(doc.Digest(), 32)
	_, err = fmt.Fprintf(out, "digest          %s:%x\ntdx MRCONFIGID  %x\n                %s\nsnp HOSTDATA    %x\n                %s\nentries         %s\n",
		doc.Algorithm(), doc.Digest(), tdx, base64.StdEncoding.EncodeToString(tdx),
		snp, base64.StdEncoding.EncodeToString(snp), strings.Join(doc.Names(), " "))
	return err
}

// withoutPath drops what the caller says.
func withoutPath(err error) error {
	var at *os.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

// overlaid is c with the measured sections that text has, key by key. What the
// init-data rests on, and what was used before it was read, is not among them.
func (c Config) overlaid(text []byte) (Config, error) {
	over := struct {
		Attester struct {
			Measure string `toml:"measure"`
		} `toml:"attester"`
		KBS      KBSConfig      `toml:"kbs"`
		Image    ImageConfig    `toml:"image"`
		Policy   PolicyConfig   `toml:"policy"`
		Registry RegistryConfig `toml:"registry"`
	}{KBS: c.KBS, Image: c.Image, Policy: c.Policy, Registry: c.Registry}
	over.Attester.Measure = c.Attester.Measure
	if err := daemon.DecodeText(configEntry, text, &over); err != nil {
		return c, fmt.Errorf("%w (attester.measure and the sections kbs, image, policy and registry may be there)", err)
	}
	c.Attester.Measure = over.Attester.Measure
	c.KBS, c.Image, c.Policy, c.Registry = over.KBS, over.Image, over.Policy, over.Registry
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("%s: %w", configEntry, err)
	}
	return c, nil
}
