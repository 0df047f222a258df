"""What goes wrong below a night: the store, disks, memory, the clock, two runs at once, a migration cut short."""
