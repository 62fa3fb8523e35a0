"""`rankzero init`: look at the rows of a user and write a commented recipe that trains well."""
