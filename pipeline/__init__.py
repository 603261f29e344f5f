"""What a person drives: study files, commands, reports."""
