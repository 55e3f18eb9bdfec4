// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/store"
)

func (p *process) imageCommand() *cobra.Command {
	root := group("image", "The images that coffer pull has put into a layer store")
	var folder string
	var asJSON bool
	list := &cobra.Command{
		Use:   "list --root DIR",
		Short: "List the images of a layer store with what they take",
		Long: `List the images of a layer store, the one used last first. SIZE is the disk space of
all its layers, EXCLUSIVE the part that goes away with the image, as no other
image has those layers.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return inFlags(withStore(folder, func(layers *store.Store) error {
				return listImages(cmd.OutOrStdout(), layers.Images(), asJSON)
			}))
		},
	}
	list.Flags().BoolVar(&asJSON, "json", false, "print one JSON array")
	remove := &cobra.Command{
		Use:   "remove IMAGE --root DIR",
		Short: "Remove an image and the layers that only it has",
		Long: `Remove an image, named by a reference that it was pulled by or by its manifest's
digest, under all its names, with the layers that no other image has. An image
whose bundle is there stays: remove the bundle first.`,
		Args: arguments("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inFlags(withStore(folder, func(layers *store.Store) error {
				return removeImage(cmd.Context(), cmd.ErrOrStderr(), layers, args[0])
			}))
		},
	}
	for _, cmd := range []*cobra.Command{list, remove} {
		cmd.Flags().StringVar(&folder, "root", "", "`FOLDER` of the layer store")
		root.AddCommand(cmd)
	}
	return root
}

// withStore opens the store at a root that is there.
func withStore(root string, use func(*store.Store) error) error {
	if root == "" {
		return usagef("which layer store? name its folder with --root DIR")
	}
	if _, err := os.Stat(root); err != nil {
		return fmt.Errorf("--root: %w", err) // do not make one
	}
	pl := &pulling{}
	err := pl.open(root, nil, imagepull.Options{})
	if err == nil {
		err = use(pl.layers)
	}
	return errors.Join(err, pl.close())
}

// imageReport is one image of coffer image list --json. Sizes are bytes on disk.
type imageReport struct {
	References []string        `json:"references"`
	Manifest   digest.Digest   `json:"manifest"`
	Layers     []digest.Digest `json:"layers"` // chain ids, from the bottom up
	Size       int64           `json:"size"`
	Exclusive  int64           `json:"exclusive"`
	LastUsed   time.Time       `json:"lastUsed"`
	InUse      bool            `json:"inUse"`
}

func listImages(w io.Writer, images []store.Image, asJSON bool) error {
	slices.SortStableFunc(images, func(a, b store.Image) int { return b.LastUsed.Compare(a.LastUsed) })
	if asJSON {
		out := []imageReport{}
		for _, i := range images {
			out = append(out, imageReport{
				References: i.References, Manifest: i.Manifest, Layers: i.Layers,
				Size: i.Size, Exclusive: i.Exclusive, LastUsed: i.LastUsed, InUse: i.InUse,
			})
		}
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		return e.Encode(out)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tMANIFEST\tLAYERS\tSIZE\tEXCLUSIVE\tLAST USED\tIN USE")
	for _, i := range images {
		use := "no"
		if i.InUse {
			use = "yes"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", printable(strings.Join(i.References, " ")), i.Manifest.Encoded()[:12],
			len(i.Layers), size(i.Size), size(i.Exclusive), i.LastUsed.Format(time.DateTime), use)
	}
	return t.Flush()
}

func removeImage(ctx context.Context, w io.Writer, layers *store.Store, name string) error {
	manifest, err := findImage(layers.Images(), name)
	if err != nil {
		return err
	}
	freed, err := layers.RemoveImage(ctx, manifest)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "removed %s: %s, %s\n", manifest, count(freed.Layers, "layer"), size(freed.Bytes))
	return nil
}

// findImage finds an image by a reference with its digest or without, by its
// manifest's digest, or by the beginning of that, as the list shows it.
func findImage(images []store.Image, name string) (digest.Digest, error) {
	var found []digest.Digest
	for _, i := range images {
		named := slices.ContainsFunc(i.References, func(ref string) bool {
			bare, _, _ := strings.Cut(ref, "@")
			return ref == name || bare == name
		})
		const shortest = 6
		hex := strings.TrimPrefix(name, "sha256:")
		if named || len(hex) >= shortest && strings.HasPrefix(i.Manifest.Encoded(), hex) {
			found = append(found, i.Manifest)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("image %s is not in the store: see coffer image list: %w", name, errdefs.ErrNotFound)
	}
	return "", fmt.Errorf("%s is several images (%s): name one by its digest: %w", name, found, errdefs.ErrInvalidArgument)
}
