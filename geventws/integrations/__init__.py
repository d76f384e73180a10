"""What joins geventws to other programs: each module needs one that geventws itself does not."""
