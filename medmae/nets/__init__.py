"""Networks: tokens in, features out. None of them decides what is hidden."""
