// Package sandboxapi is the HTTP face of a fleet of sandboxes: the routes that public sandbox SDKs call, spore's own for its console and its command line, and
// the way through to what runs in the sandboxes.
//
// openapi holds the document that all of this follows, proxy the way through, answer what errors look like, and fleet, which knows nothing of HTTP, the
// sandboxes.
package sandboxapi
