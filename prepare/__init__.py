"""From downloaded data sets to a folder of clips and a manifest that says what they are."""
