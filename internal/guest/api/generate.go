package api

// Needs protoc with its standard include files (Debian: protobuf-compiler and
// libprotobuf-dev) and, on the PATH, protoc-gen-go and protoc-gen-connect-go in
// the versions of their modules in go.mod.
//go:generate protoc --proto_path=. --go_out=. --go_opt=paths=source_relative --connect-go_out=. --connect-go_opt=paths=source_relative process/process.proto filesystem/filesystem.proto
