// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/typeurl/v2"
)

// exit is how a container's first process ended.
type exit struct {
	code uint32
	err  error
}

// watchExit returns a channel that gets the exit of container id. The caller
// calls done.
func (t *Testbed) watchExit(ctx context.Context, id string) (<-chan exit, func(), error) {
	client, err := t.Client(cri)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	events, errs := client.EventService().Subscribe(ctx, `topic=="/tasks/exit"`)
	exited, finished := make(chan exit, 1), make(chan struct{})
	go func() {
		defer close(finished)
		for {
			select {
			case err := <-errs:
				exited <- exit{err: errors.Join(errors.New("containerd's events ended"), err)}
				return
			case env := <-events:
				v, err := typeurl.UnmarshalAny(env.Event)
				if err != nil {
					continue // not an event of this API
				}
				if e, ok := v.(*eventsapi.TaskExit); ok && e.ContainerID == id && e.ID == id {
					exited <- exit{code: e.ExitStatus}
					return
				}
			}
		}
	}()
	return exited, func() { cancel(); <-finished; _ = client.Close() }, nil
}
