"""What can be known of a Ray cluster file before a machine is paid for; `raymat cluster check` prints it."""
