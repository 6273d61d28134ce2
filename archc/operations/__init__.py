"""Operations: one folder each, holding what the compiler knows of it and the code that runs."""
