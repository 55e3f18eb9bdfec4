// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagefinder

import (
	"context"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/opencontainers/go-digest"
)

// source returns host/repository of the registry that a manifest came from, ""
// if it came from none.
func (f *Finder) source(ctx context.Context, manifest content.Info) (string, error) {
	sources := distributionSources(manifest.Labels)
	if len(sources) == 0 {
		return "", nil
	}
	named, err := f.namesOf(ctx, manifest.Digest)
	if err != nil {
		return "", err
	}
	for _, s := range sources {
		if i := slices.IndexFunc(named, s.matches); i >= 0 {
			return named[i], nil
		}
	}
	first := sources[0]
	if full, ok := f.registries[first.host]; ok {
		first.host = full
	}
	return first.host + "/" + first.repository, nil
}

// origin is where containerd noted that a blob came from. The host has no port.
type origin struct{ host, repository string }

// matches says whether name, a host/repository, is this origin, apart from the
// port.
func (o origin) matches(name string) bool {
	host, repository, _ := strings.Cut(name, "/")
	return hostname(host) == o.host && repository == o.repository
}

// distributionSources reads the labels containerd.io/distribution.source.<host>,
// each with the repositories of one host, separated by commas.
func distributionSources(l map[string]string) []origin {
	var origins []origin
	for _, key := range slices.Sorted(maps.Keys(l)) {
		host, ok := strings.CutPrefix(key, labels.LabelDistributionSource+".")
		if !ok || host == "" {
			continue
		}
		for repository := range strings.SplitSeq(l[key], ",") {
			if repository != "" {
				origins = append(origins, origin{host, repository})
			}
		}
	}
	return origins
}

// namesOf returns host/repository of the image records that lead to manifest,
// directly or by an index. There are none during an image's first pull.
func (f *Finder) namesOf(ctx context.Context, manifest digest.Digest) ([]string, error) {
	records, err := f.images.List(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range records {
		if records[i].Target.Digest != manifest && !f.indexHas(ctx, records[i].Target.Digest, manifest) {
			continue
		}
		if name := repositoryOf(records[i].Name); strings.Contains(name, "/") {
			names = append(names, name)
		}
	}
	return names, nil
}

func (f *Finder) indexHas(ctx context.Context, index, manifest digest.Digest) bool {
	info, err := f.content.Info(ctx, index)
	if err != nil {
		return false
	}
	for key, value := range info.Labels {
		if strings.HasPrefix(key, "containerd.io/gc.ref.content.") && value == manifest.String() {
			return true
		}
	}
	return false
}

// repositoryOf cuts tag and digest off an image name.
func repositoryOf(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		name = name[:colon]
	}
	return name
}

// hostname cuts the port off host:port, as containerd does in its labels.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.Trim(host, "[]")
}
