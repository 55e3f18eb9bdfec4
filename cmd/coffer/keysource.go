// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"

	"github.com/coffer-cc/coffer/attester"
	"github.com/coffer-cc/coffer/cdh"
	"github.com/coffer-cc/coffer/cdh/keywrap"
	"github.com/coffer-cc/coffer/imagepull/timeline"
	"github.com/coffer-cc/coffer/kbs"
)

// keySourceFlags say where the keys of encrypted layers come from.
type keySourceFlags struct {
	files           []string
	kbs, kbsCA, tee string
}

func (f *keySourceFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.files, "key", nil, "`FILE` with the 32 raw bytes of a key, as coffer encrypt --key made it; repeat for more")
	flags.StringVar(&f.kbs, "kbs", "", "`URL` of the key broker service to get keys from (default: $"+envKBS+")")
	flags.StringVar(&f.kbsCA, "kbs-ca", "", "PEM `FILE` with certificates to trust for it, beside the system's (default: $"+envKBSCA+")")
	flags.StringVar(&f.tee, "attester", attester.Auto, "`TEE` to attest with: auto, tdx, or sample, which protects nothing")
}

// keySource unwraps layer keys with the keys of files, and else with those of a
// key broker service.
type keySource struct {
	keks   [][]byte
	hub    *cdh.Hub // nil without a service
	client *kbs.Client
}

// newKeySource reads the files. It does not attest yet.
func (p *process) newKeySource(flags *keySourceFlags, recorder *timeline.Recorder) (_ *keySource, err error) {
	s := &keySource{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for _, name := range flags.files {
		kek, err := readKey(name)
		if err != nil {
			return nil, err
		}
		s.keks = append(s.keks, kek)
	}
	url, caFile := flags.kbs, flags.kbsCA
	if url == "" && len(s.keks) == 0 {
		url = p.getenv(envKBS)
	}
	if url == "" {
		return s, nil
	}
	if caFile == "" {
		caFile = p.getenv(envKBSCA)
	}
	var options kbs.ClientOptions
	if caFile != "" {
		if options.CA, err = os.ReadFile(caFile); err != nil {
			return nil, usagef("certificates to trust (--kbs-ca, $%s): %w", envKBSCA, err)
		}
	}
	tee, err := attester.Detect(flags.tee, attester.Options{})
	if err != nil {
		err = fmt.Errorf("--attester: %w", err)
		if flags.tee != attester.Auto {
			return nil, err
		}
		s.hub = cdh.NewHub(unattested{err}, cdh.Options{}) // nothing may be encrypted
		return s, nil
	}
	s.client, err = kbs.NewClient(url, seenEvidence{attester.NewAgent(tee), recorder}, options)
	if err != nil {
		return nil, usageError{err}
	}
	s.hub = cdh.NewHub(seenResources{s.client, recorder}, cdh.Options{})
	return s, nil
}

// UnwrapKey is the puller's way to a layer key.
func (s *keySource) UnwrapKey(ctx context.Context, packet []byte) ([]byte, error) {
	if s.hub == nil && len(s.keks) == 0 {
		return nil, fmt.Errorf("the image is encrypted: name the key broker service that has its key with --kbs URL, or the key with --key FILE: %w",
			errdefs.ErrFailedPrecondition)
	}
	if len(s.keks) > 0 {
		private, err := s.unwrapHere(packet)
		if err == nil || s.hub == nil {
			return private, err
		}
	}
	return s.hub.UnwrapKey(ctx, packet)
}

// unwrapHere tries the keys of the files.
func (s *keySource) unwrapHere(packet []byte) ([]byte, error) {
	p, err := keywrap.ParsePacket(packet)
	if err == nil {
		err = p.Supported()
	}
	if err != nil {
		return nil, fmt.Errorf("wrapped key: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for _, kek := range s.keks {
		if private, err := keywrap.Unwrap(kek, p); err == nil {
			return private, nil
		}
	}
	return nil, fmt.Errorf("%s of --key does not open it: name the file of key %s: %w", count(len(s.keks), "file"), p.KID(), errdefs.ErrNotFound)
}

// close ends attestation under way and forgets all keys.
func (s *keySource) close() error {
	for _, kek := range s.keks {
		clear(kek)
	}
	if s.hub != nil {
		s.hub.Close()
	}
	if s.client == nil {
		return nil
	}
	return s.client.Close()
}

// unattested has no resources, since this machine cannot attest.
type unattested struct{ reason error }

func (u unattested) GetResource(context.Context, string) ([]byte, error) { return nil, u.reason }

// seenResources tells the recorder when the service is asked for a key, which is
// when it attests.
type seenResources struct {
	cdh.ResourceGetter
	recorder *timeline.Recorder
}

func (s seenResources) GetResource(ctx context.Context, uri string) (resource []byte, err error) {
	end := s.recorder.Begin(timeline.Attest, uri)
	defer func() { end(err) }()
	return s.ResourceGetter.GetResource(ctx, uri)
}

// seenEvidence tells it when the TEE signs.
type seenEvidence struct {
	kbs.EvidenceSource
	recorder *timeline.Recorder
}

func (s seenEvidence) Evidence(ctx context.Context, reportData []byte) (evidence []byte, err error) {
	end := s.recorder.Begin(timeline.Evidence, s.TEE())
	defer func() { end(err) }()
	return s.EvidenceSource.Evidence(ctx, reportData)
}
