"""The network a run measures: namespaces, Open vSwitch, Mininet, and every change to the host, undoable."""
