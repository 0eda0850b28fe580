// The terminal emulator, in a file of its own: only who opens a terminal loads it.
export { FitAddon } from "@xterm/addon-fit";
export { Terminal } from "@xterm/xterm";
