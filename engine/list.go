package engine

import "context"

// List returns the state of every container, ordered by ID. It reads memory only.
func (e *Engine) List(context.Context) ([]State, error) {
	list := e.all()
	states := make([]State, 0, len(list))
	for _, c := range list {
		states = append(states, c.snapshot())
	}
	return states, nil
}

// State returns the state of one container.
func (e *Engine) State(_ context.Context, id string) (State, error) {
	c, err := e.container(id)
	if err != nil {
		return State{}, err
	}
	return c.snapshot(), nil
}
