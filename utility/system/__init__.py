"""The machine underneath: errors in a sentence, files, progress, memory, devices, several
processes."""
