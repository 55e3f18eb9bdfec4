// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/coffer-cc/coffer/imagepull"
)

func (p *process) bundleCommand() *cobra.Command {
	root := group("bundle", "The bundles that coffer pull --bundle makes")
	var store string
	remove := &cobra.Command{
		Use:   "remove BUNDLE --root DIR",
		Short: "Unmount a bundle and delete its writable layer",
		Long: `Unmount BUNDLE/rootfs and delete it with its config.json and its writable layer:
what a container wrote there is lost. The image's layers stay in the store at
--root, for the next pull. A bundle that is not there is no error; one that is in
use stays.`,
		Args: arguments("BUNDLE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inFlags(removeBundle(cmd.Context(), args[0], store))
		},
	}
	remove.Flags().StringVar(&store, "root", "", "`FOLDER` of the layer store that it was made with")
	root.AddCommand(remove)
	return root
}

func removeBundle(ctx context.Context, bundle, root string) error {
	if root == "" {
		return usagef("which layer store was it made with? name its folder with --root DIR")
	}
	if _, err := os.Stat(root); err != nil {
		return fmt.Errorf("--root: %w", err) // do not make one
	}
	path, err := filepath.Abs(bundle)
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	pl := &pulling{}
	err = pl.open(root, nil, imagepull.Options{})
	if err == nil {
		err = pl.puller.RemoveImage(ctx, path)
	}
	return errors.Join(err, pl.close())
}
