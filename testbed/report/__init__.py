"""What a run leaves behind and how a person reads it: the run folder, the terminal table, the HTML page, JUnit XML."""
