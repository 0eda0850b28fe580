// Package house holds the rules of the building: which package may import which, and what may go into the guest agent.
// It has no code of its own; its tests read the import graph from the go command.
package house
