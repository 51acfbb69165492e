"""The grammar of each command, by what the commands are about."""
