"""Starting the parts of Grantbook on machines."""
