package main

import (
	"context"
	"time"

	"github.com/gpu-agent/gpu-agent/pkg/config"
	"github.com/gpu-agent/gpu-agent/pkg/kube"
)

const (
	// choicePatience bounds the wait for the node's label at the start: without an API server the node
	// offers what one without the label would.
	choicePatience = 5 * time.Second
	choiceInterval = 15 * time.Second
)

// firstChoice asks for the node's label before anything is offered, and offers what it names. What it
// names and is not there leaves the configuration of a node without the label.
func (a *agent) firstChoice(ctx context.Context, load func(choice string) (config.Config, error)) error {
	if a.now().config.DevicePlugin.NVIDIAConfigDir == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, choicePatience)
	defer cancel()
	choice, err := a.now().node.Label(ctx, config.ChoiceLabel)
	if err != nil || choice == "" {
		return err
	}
	a.choice.Set(choice)
	c, err := load(choice)
	if err != nil {
		return err
	}
	return a.edit(c)
}

// runChoice follows the node's label.
func (a *agent) runChoice(ctx context.Context, node *kube.Node) error {
	failing := false
	for {
		choice, err := node.Label(ctx, config.ChoiceLabel)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			a.log.Warn("the node's choice of a configuration cannot be read: it stays as it was", "label", config.ChoiceLabel, "error", err)
		case err == nil && choice != a.choice.Get():
			a.log.Info("the node's label chooses a configuration", "label", config.ChoiceLabel, "value", choice)
			a.choice.Set(choice)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(choiceInterval):
		}
	}
}
